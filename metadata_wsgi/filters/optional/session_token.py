# SPDX-License-Identifier: Apache-2.0
"""Session tokens as in AWS's IMDSv2, against SSRF in an instance. Off by default.

In a server-side request forgery (SSRF) an attacker makes a web application in an instance fetch
``http://169.254.169.254/...``, and so reads keys and passwords of the instance. The attacker can rarely make the
application send a PUT with a header. So a client must first send ``PUT /latest/api/token`` with the header
``X-aws-ec2-metadata-token-ttl-seconds`` (1 to 21600 seconds). The response contains a token. The client sends the token
with all other requests, in ``X-aws-ec2-metadata-token``.

==========================================  ==========================================================
request                                     response
==========================================  ==========================================================
PUT /latest/api/token with the TTL header   200, the token, and its TTL in the same header
... without this header, or a wrong TTL     400
... with X-Forwarded-For or Forwarded       403: an open proxy in the instance must not get tokens
PUT /<version>/api/token                    403: as in AWS, only under latest
another method on /latest/api/token         405
another path with a valid token             passes
... with an invalid or expired token        401, even if tokens are optional
... without a token                         passes; 401 if ``required`` is set
==========================================  ==========================================================

The server stores no tokens. A token consists of its expiry time and an HMAC-SHA256 over the expiry time and the id of
the instance's port. So a stolen token is invalid for another port. A token is valid on every host that has the same
``keys``. To replace a key, write the new key in front of the old key on every host. Remove the old key six hours later.

The response with the token has an IP TTL of ``hop_limit``. With TTL 1 the response does not pass a router in the
instance, so a container on a Docker bridge cannot receive it. The worker that has the client's connection sets the TTL,
in every mode. With haproxy instead of our namespace proxy the TTL is not set.

If ``required`` is set, clients that do not support tokens get no metadata: cloud-init requests tokens on AWS only.
No token is logged or sent to Nova. The filter must be after ``instance``. It reads INSTANCE and CLIENT_IS_PROXY.
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
        help='Keys of the session tokens, each of at least 32 characters. The keys must be the same on all hosts. New '
        'tokens are made with the first key. Tokens that were made with any of the keys are accepted.',
    ),
    cfg.BoolOpt('required', default=False, help='Respond 401 to a request without a session token.'),
    cfg.IntOpt('hop_limit', default=1, min=1, max=255, help='IP TTL of the response with a session token.'),
]

PATH = '/latest/api/token'
MAX_TTL_S = 21600
MAX_CLOCK_SKEW_S = 60
"""The clocks of two hosts may differ by this time. So a valid token expires within MAX_TTL_S plus this time."""
MIN_KEY_BYTES = 32

_TOKEN = 'HTTP_X_AWS_EC2_METADATA_TOKEN'  # noqa: S105 (a header's name)
_TTL = 'HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS'


class SessionTokenFilter:
    """Issues tokens and checks them. ``clock`` is the wall clock, because a token of one host is valid on others."""

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
        """Respond with a token, call the next filter, or respond with an error (see the table of this module)."""
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
                f'The header {header_names.TOKEN_TTL} must be a number from 1 to {MAX_TTL_S}.'
            )
        token = make_token(self._keys[0], instance.port_id, int(self._clock()) + ttl_s)
        return _token_response(token, ttl_s, self._hop_limit)


def _parse_ttl(text: str | None) -> int | None:
    """The TTL in seconds; None if ``text`` is not a number from 1 to MAX_TTL_S."""
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
    """Whether ``token`` was made with ``key`` for the port and is valid at ``now_s``."""
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
            f'keys in [{GROUP}]: a key is shorter than {MIN_KEY_BYTES} characters; "openssl rand -hex 32" makes a key'
        )
    return lambda app: SessionTokenFilter(app, keys=keys, required=conf.required, hop_limit=conf.hop_limit)
