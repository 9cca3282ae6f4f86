# SPDX-License-Identifier: Apache-2.0
"""Session tokens as in AWS's IMDSv2, against SSRF in an instance. Off by default.

A web application that an attacker can make fetch ``http://169.254.169.254/...`` (SSRF) gives the metadata of its
instance away: keys, passwords. The attacker can rarely make it send a PUT with a header. So a client first sends
``PUT /latest/api/token`` with ``X-aws-ec2-metadata-token-ttl-seconds`` (1 to 21600), and sends the token of the
response in ``X-aws-ec2-metadata-token`` with all other requests.

==========================================  ==========================================================
request                                     response
==========================================  ==========================================================
PUT /latest/api/token                       200, the token, and its TTL in the same header
... without the header, or another number   400
... with X-Forwarded-For or Forwarded       403: an open proxy in the instance must not get tokens
PUT /<version>/api/token                    403: as in AWS, under latest only
another method on /latest/api/token         405
another path with a valid token             passes
... with an invalid or expired token        401, also where tokens are optional
... without a token                         passes; 401 where ``required``
==========================================  ==========================================================

Tokens are not stored: a token is its expiry time, authenticated (HMAC-SHA256) together with the port of the instance.
A stolen token is invalid at another port; a valid one is valid on every host with the same ``keys``. To replace a key
put the new one first on every host, and remove the old one six hours later.

The response with the token has an IP TTL of ``hop_limit``, so that a container behind a bridge, or a proxy that routes,
does not receive it. The worker that has the client's socket sets it, in one hop and in two. With another namespace
proxy than ours (haproxy) there is no such limit.

With ``required`` clients without support for tokens get no metadata at all: cloud-init requests tokens on AWS only.
Stands behind ``instance``. No token is logged or sent to Nova. Reads INSTANCE and CLIENT_IS_PROXY.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import posixpath
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.http import error_responses, header_names
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

GROUP = 'session_token'
OPTS = [
    cfg.ListOpt(
        'keys',
        secret=True,
        required=True,
        help='Keys that authenticate session tokens, the same on all hosts, each of at least 32 characters. The first '
        'makes new tokens, tokens of all are accepted.',
    ),
    cfg.BoolOpt('required', default=False, help='Respond 401 to a request without a session token.'),
    cfg.IntOpt('hop_limit', default=1, min=1, max=255, help='IP TTL of the response with a session token.'),
]

PATH = '/latest/api/token'
MAX_TTL_S = 21600
MAX_CLOCK_SKEW_S = 60
"""A token of a host whose clock is ahead by at most this much is accepted for its whole TTL."""
MIN_KEY_BYTES = 32

_TOKEN = 'HTTP_X_AWS_EC2_METADATA_TOKEN'  # noqa: S105 (a header's name)
_TTL = 'HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS'


class SessionTokenFilter:
    """Issues tokens, and checks those of other requests. ``clock`` is the wall clock: tokens are valid on all hosts."""

    REQUIRES = frozenset({environ_keys.INSTANCE, environ_keys.CLIENT_IS_PROXY})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        app: WSGIApplication,
        *,
        keys: Sequence[bytes],
        required: bool = False,
        hop_limit: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self._keys = tuple(keys)
        self._required = required
        self._hop_limit = hop_limit
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond with a token, call the app, or respond 401."""
        instance: environ_keys.Instance = environ[environ_keys.INSTANCE]
        token, ttl = environ.pop(_TOKEN, None), environ.pop(_TTL, None)
        path = posixpath.normpath('/' + environ['PATH_INFO'].lstrip('/'))
        if path == PATH:
            return self._issue(environ, instance, ttl)(environ, start_response)
        if path.endswith('/api/token') and environ['REQUEST_METHOD'] == 'PUT':
            return error_responses.forbidden('Session tokens are issued under latest only.')(environ, start_response)
        if token is None and not self._required:
            return self.app(environ, start_response)
        if token is None or not any(verify_token(key, instance.port_id, token, self._clock()) for key in self._keys):
            reason = 'no session token' if token is None else 'the session token is expired, or of another instance'
            environ[environ_keys.FAILURE] = environ_keys.Failure(401, reason)
            return error_responses.unauthorized()(environ, start_response)
        return self.app(environ, start_response)

    def _issue(self, environ: WSGIEnvironment, instance: environ_keys.Instance, ttl: str | None) -> WSGIApplication:
        if environ['REQUEST_METHOD'] != 'PUT':
            return error_responses.not_allowed('PUT')
        if environ[environ_keys.CLIENT_IS_PROXY]:
            environ[environ_keys.FAILURE] = environ_keys.Failure(403, 'a proxy asks for a session token')
            return error_responses.forbidden('A session token is not issued to a proxy.')
        ttl_s = _parse_ttl(ttl)
        if ttl_s is None:
            return error_responses.bad_request(
                f'{header_names.TOKEN_TTL} must be there, a number from 1 to {MAX_TTL_S}.'
            )
        token = make_token(self._keys[0], instance.port_id, int(self._clock()) + ttl_s)
        return _token_response(token, ttl_s, self._hop_limit)


def _parse_ttl(text: str | None) -> int | None:
    """The TTL in seconds; None for anything but a number from 1 to MAX_TTL_S without superfluous digits."""
    if text is None or len(text) > len(str(MAX_TTL_S)) or not (text.isascii() and text.isdigit()):
        return None
    ttl_s = int(text)
    return ttl_s if 1 <= ttl_s <= MAX_TTL_S else None


def _token_response(token: str, ttl_s: int, hop_limit: int) -> WSGIApplication:
    def response(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = [
            ('Content-Type', 'text/plain'),
            ('Content-Length', str(len(token))),
            (header_names.TOKEN_TTL, str(ttl_s)),
            (header_names.HOP_LIMIT, str(hop_limit)),
        ]
        start_response('200 OK', headers)
        return [token.encode()]

    return response


def make_token(key: bytes, port_id: str, expires_at_s: int) -> str:
    """A token for the port: expiry (8 bytes, seconds since 1970) and HMAC (32 bytes), base64 without padding."""
    expiry = expires_at_s.to_bytes(8, 'big')
    return base64.urlsafe_b64encode(expiry + _hmac(key, port_id, expiry)).rstrip(b'=').decode()


def verify_token(key: bytes, port_id: str, token: str, now_s: float) -> bool:
    """Whether ``token`` was made with ``key`` for the port, has not expired, and had no longer TTL than MAX_TTL_S."""
    try:
        raw = base64.b64decode(token.encode('ascii') + b'==', altchars=b'-_', validate=True)
    except ValueError:
        return False
    expiry, digest = raw[:8], raw[8:]
    if not hmac.compare_digest(digest, _hmac(key, port_id, expiry)):
        return False
    return 0 < int.from_bytes(expiry, 'big') - now_s <= MAX_TTL_S + MAX_CLOCK_SKEW_S


def _hmac(key: bytes, port_id: str, expiry: bytes) -> bytes:
    return hmac.new(key, b'session token\0' + expiry + port_id.encode(), hashlib.sha256).digest()


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SessionTokenFilter]:
    """For ``use = egg:metadata_wsgi#session_token``."""
    conf = config_files.load(global_conf, OPTS, GROUP).session_token
    keys = [key.encode() for key in conf['keys']]
    if any(len(key) < MIN_KEY_BYTES for key in keys):
        raise ConfigError(
            f'keys in [{GROUP}]: one is shorter than {MIN_KEY_BYTES} characters; "openssl rand -hex 32" makes one'
        )
    return lambda app: SessionTokenFilter(app, keys=keys, required=conf.required, hop_limit=conf.hop_limit)
