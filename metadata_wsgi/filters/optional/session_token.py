# SPDX-License-Identifier: Apache-2.0
"""Session tokens, as AWS has them in IMDSv2: against programs in a guest that fetch URLs for strangers. Off by default.

A web application that can be talked into fetching ``http://169.254.169.254/...`` (SSRF) gives away what the
guest is told: keys, passwords. It can seldom be talked into a PUT with a header of its own. So a guest first
asks ``PUT /latest/api/token`` with ``X-aws-ec2-metadata-token-ttl-seconds`` (1 to 21600), and shows the token
that it is answered in ``X-aws-ec2-metadata-token`` with whatever else it asks.

==========================================  ==========================================================
asked                                       answered
==========================================  ==========================================================
PUT /latest/api/token                       200, the token, and its seconds in the same header
... without the header, or another number   400
... by a proxy (the guest X-Forwarded-For)  403: an open proxy in the guest must not fetch tokens
PUT /<version>/api/token                    403: AWS has it under latest only
another method on /latest/api/token         405
anything else with a token that is right    goes on
... with one that is not, or is too old     401, also where tokens are optional
... without one                             goes on; 401 where ``required``
==========================================  ==========================================================

Tokens are not kept anywhere: each is its own end, sealed (HMAC-SHA256) together with the guest's port. One that
was stolen is worth nothing at another port, and one made on this host is right on every host that has the same
``keys``. To replace a key put the new one first on every host, and take the old one out six hours later.

The answer with the token goes over ``hop_limit`` hops, so that a container behind a bridge or a proxy in the guest
that routes does not receive it; the worker that has the guest's socket sees to that, in one hop and in two. With
another namespace proxy than ours (haproxy) there is no such limit.

What ``required`` breaks: cloud-init asks for tokens on AWS only, and of the others hardly any does; such a guest
gets no metadata at all. Stands behind ``instance``. Nothing of a token is logged or passed on to Nova.
Reads INSTANCE and CLIENT_IS_PROXY.
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
        help='Keys that seal session tokens, the same on all hosts, each of at least 32 characters: the first seals, '
        'all are accepted.',
    ),
    cfg.BoolOpt('required', default=False, help='Answer 401 to a guest that shows no session token.'),
    cfg.IntOpt(
        'hop_limit', default=1, min=1, max=255, help='Over how many hops the answer with a session token may go.'
    ),
]

PATH = '/latest/api/token'
LONGEST_S = 21600
SHORTEST_KEY = 32

_TOKEN = 'HTTP_X_AWS_EC2_METADATA_TOKEN'  # noqa: S105 (a header's name)
_TTL = 'HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS'


class SessionTokenFilter:
    """Gives tokens, and lets pass who has one. ``clock`` is the wall clock: hosts share the tokens."""

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
        """Answer with a token, go on, or answer 401."""
        instance: environ_keys.Instance = environ[environ_keys.INSTANCE]
        shown, ttl = environ.pop(_TOKEN, None), environ.pop(_TTL, None)
        path = posixpath.normpath('/' + environ['PATH_INFO'].lstrip('/'))
        if path == PATH:
            return self._give(environ, instance, ttl)(environ, start_response)
        if path.endswith('/api/token') and environ['REQUEST_METHOD'] == 'PUT':
            return error_responses.forbidden('Session tokens are given under latest only.')(environ, start_response)
        if shown is None and not self._required:
            return self.app(environ, start_response)
        if shown is None or not any(opens(key, instance.port_id, shown, self._clock()) for key in self._keys):
            return error_responses.unauthorized()(environ, start_response)
        return self.app(environ, start_response)

    def _give(self, environ: WSGIEnvironment, instance: environ_keys.Instance, ttl: str | None) -> WSGIApplication:
        if environ['REQUEST_METHOD'] != 'PUT':
            return error_responses.not_allowed('PUT')
        if environ[environ_keys.CLIENT_IS_PROXY]:
            return error_responses.forbidden('A session token is not given to a proxy.')
        if ttl is None or not (ttl.isascii() and ttl.isdigit() and 1 <= int(ttl[:9]) <= LONGEST_S):
            return error_responses.bad_request(
                f'{header_names.TOKEN_TTL} must be there, a number from 1 to {LONGEST_S}.'
            )
        token = seal(self._keys[0], instance.port_id, int(self._clock()) + int(ttl))
        return _answer(token, int(ttl), self._hop_limit)


def _answer(token: str, ttl_s: int, hop_limit: int) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = [
            ('Content-Type', 'text/plain'),
            ('Content-Length', str(len(token))),
            (header_names.TOKEN_TTL, str(ttl_s)),
            (header_names.HOP_LIMIT, str(hop_limit)),
        ]
        start_response('200 OK', headers)
        return [token.encode()]

    return answer


def seal(key: bytes, port_id: str, ends_at_s: int) -> str:
    """A token for the port: when it ends (8 bytes) and the seal (32 bytes), in base64 without padding."""
    end = ends_at_s.to_bytes(8, 'big')
    return base64.urlsafe_b64encode(end + _seal(key, port_id, end)).rstrip(b'=').decode()


def opens(key: bytes, port_id: str, token: str, now_s: float) -> bool:
    """Whether ``token`` was sealed with ``key`` for the port and has not ended."""
    try:
        raw = base64.b64decode(token.encode('ascii') + b'==', altchars=b'-_', validate=True)
    except ValueError:
        return False
    end, seal_ = raw[:8], raw[8:]
    return hmac.compare_digest(seal_, _seal(key, port_id, end)) and now_s < int.from_bytes(end, 'big')


def _seal(key: bytes, port_id: str, end: bytes) -> bytes:
    return hmac.new(key, b'session token\0' + end + port_id.encode(), hashlib.sha256).digest()


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SessionTokenFilter]:
    """For ``use = egg:metadata_wsgi#session_token``."""
    conf = config_files.load(global_conf, OPTS, GROUP).session_token
    keys = [key.encode() for key in conf['keys']]
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise ConfigError(
            f'keys in [{GROUP}]: one is shorter than {SHORTEST_KEY} characters; "openssl rand -hex 32" makes a good one'
        )
    return lambda app: SessionTokenFilter(app, keys=keys, required=conf.required, hop_limit=conf.hop_limit)
