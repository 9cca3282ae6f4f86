# SPDX-License-Identifier: Apache-2.0
"""Caches Nova's responses to an instance for some seconds. This filter must be after instance.

Instances request the same few paths again and again. If a response is cached, this filter sends it without a request to
Nova. The filter caches responses to GET with status 200 and at most ``answer_cache_largest_body`` bytes, for
``answer_cache_seconds``. The following responses are never cached:

- for paths that contain ``password``, and for paths that are not in canonical form (``//``, ``/.``, ``%``);
- to requests with a query, a body, a range, a condition or a session token;
- with ``Set-Cookie``, ``Cache-Control`` or ``Vary``.

Of identical concurrent requests only one is sent to Nova. The others wait for its response. If the response does not
arrive in time, or may not be cached, the waiting requests are sent to Nova too.

The cache key is the instance, its project, the client's address, the path and the ``Accept*`` headers. So no instance
gets the response of another. If an instance reads meta_data.json twice within ``answer_cache_seconds``, it gets the
same ``random_seed``. Filters that may reject a request (``session_token``, ``path_policy``, ``rate_limit``) must be
before this filter.

With ``answer_cache_shared`` the responses are also stored on the server that ``cache_url`` names. They contain
user-data and keys. Every program with access to that server can read them. The filter reads SOURCE, INSTANCE and
DEADLINE and writes no key.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from metadata_wsgi import instruments
from metadata_wsgi.cache import shared
from metadata_wsgi.cache.local import Entry, LocalCache, Ttl
from metadata_wsgi.cache.single_flight import jittered
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.http import header_names
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = [
    cfg.FloatOpt(
        'answer_cache_seconds',
        default=5.0,
        min=0.1,
        max=600.0,
        help='For the filter response_cache: number of seconds for which a response of Nova is cached.',
    ),
    cfg.IntOpt(
        'answer_cache_largest_body',
        default=65536,
        min=0,
        max=1 << 20,
        help='For the filter response_cache: largest body in bytes that is cached.',
    ),
    cfg.IntOpt(
        'answer_cache_mebibytes',
        default=64,
        min=1,
        help='For the filter response_cache: size in MiB of the cache of each worker. If it is full, the oldest '
        'responses are removed.',
    ),
    cfg.BoolOpt(
        'answer_cache_shared',
        default=False,
        help='For the filter response_cache: also store the responses on the server that cache_url names. The '
        'responses contain user-data and keys.',
    ),
]

# If a request has one of these headers, the response may be wrong for other requests.
_UNCACHEABLE_REQUEST_KEYS = (
    'HTTP_RANGE', 'HTTP_IF_MATCH', 'HTTP_IF_NONE_MATCH', 'HTTP_IF_MODIFIED_SINCE', 'HTTP_IF_UNMODIFIED_SINCE',
    'HTTP_X_AWS_EC2_METADATA_TOKEN', 'HTTP_AUTHORIZATION', 'HTTP_COOKIE', 'HTTP_TRANSFER_ENCODING',
)  # fmt: skip
_UNCACHEABLE_RESPONSE_HEADERS = frozenset({'set-cookie', 'cache-control', 'vary', 'content-range', 'www-authenticate'})
# Otherwise each spelling of a path would be a cache key, and a client could fill the cache with spellings of one path.
_NON_CANONICAL = ('//', '/.', '%', '?', '#', '\\')
MAX_PATH_LENGTH = 256
WAIT_TIME_SHARE = 1 / 2
"""A request waits for an identical request for at most this part of its remaining time. The rest is for Nova."""
MAX_NUMBER_DIGITS = 9
ENTRY_BYTES = 2048
"""Approximate size of an entry without its body."""


@dataclass(slots=True)
class CachedResponse:
    """A complete response of Nova.

    It is sent without its request id, which belongs to the first request.
    """

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    _sent_headers: list[tuple[str, str]] = field(init=False, repr=False, compare=False)
    _received_age_s: int = field(init=False, repr=False, compare=False)
    """The Age header of the response when it was received, else 0. A cache in front of Nova sets this header."""

    def __post_init__(self) -> None:
        unsent = 'age', header_names.REQUEST_ID
        self._sent_headers = [header for header in self.headers if header[0].lower() not in unsent]
        age = next((value for name, value in self.headers if name.lower() == 'age'), '')
        self._received_age_s = int(age) if len(age) <= MAX_NUMBER_DIGITS and age.isascii() and age.isdigit() else 0

    def send(self, start_response: StartResponse, age_s: float) -> Iterable[bytes]:
        """Send the response, ``age_s`` seconds after it was received, with its Age (RFC 9111, 5.1)."""
        start_response(self.status, [*self._sent_headers, ('Age', str(int(age_s) + self._received_age_s))])
        return [self.body]


class ResponseCacheFilter:
    """Responds from ``cache``. Caches responses of at most ``max_body_bytes`` for ``ttl_s`` seconds."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.INSTANCE, environ_keys.DEADLINE})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, cache: LocalCache, ttl_s: float, max_body_bytes: int) -> None:
        self.app = app
        self._cache = cache
        self._ttl_s = ttl_s
        self._max_body_bytes = max_body_bytes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond from the cache, or call the next filter and cache its response."""
        if environ['REQUEST_METHOD'] != 'GET':
            return self.app(environ, start_response)
        for name in _UNCACHEABLE_REQUEST_KEYS:
            if name in environ:
                return self.app(environ, start_response)
        key = _key(environ)
        entry = self._cache.fresh(key)
        if entry is not None:
            return self._send(entry, start_response)
        if not _is_cacheable(key[3]) or environ.get('CONTENT_LENGTH', '') not in ('', '0'):
            return self.app(environ, start_response)
        return self._single_flight(key, environ, start_response)

    def _single_flight(
        self, key: tuple[str, ...], environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        flight, leads = self._cache.join(key)
        if not leads:
            deadline: Deadline = environ[environ_keys.DEADLINE]
            flight.wait(deadline.fraction(WAIT_TIME_SHARE).remaining_s())
            entry = self._cache.fresh(key)
            if entry is not None:
                return self._send(entry, start_response)
            instruments.CACHE_REQUESTS.add('response', 'miss')
            return self.app(environ, start_response)
        try:
            entry = self._cache.fetch(key, flight=flight)
            if entry is not None:
                return self._send(entry, start_response)
            return self._call_and_store(key, environ, start_response)
        finally:
            self._cache.leave(key, flight)

    def _send(self, entry: Entry, start_response: StartResponse) -> Iterable[bytes]:
        instruments.CACHE_REQUESTS.add('response', 'hit')
        response: CachedResponse = entry.value
        return response.send(start_response, self._cache.clock() - entry.loaded_at_s)

    def _call_and_store(
        self, key: tuple[str, ...], environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        instruments.CACHE_REQUESTS.add('response', 'miss')
        captured: tuple[str, list[tuple[str, str]]] | None = None

        def capture(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
            nonlocal captured
            captured = status, list(headers)
            return start_response(status, headers) if exc_info is None else start_response(status, headers, exc_info)

        began_s = self._cache.clock()
        body = self.app(environ, capture)
        if captured is None:
            return body
        status, headers = captured
        length = self._cacheable_length(status, headers)
        if length is None:
            return body
        try:
            content = b''.join(body)
        finally:
            if hasattr(body, 'close'):
                body.close()
        if len(content) == length:
            response = CachedResponse(status, headers, content)
            age_s = self._cache.clock() - began_s
            self._cache.set(key, response, Ttl(jittered(self._ttl_s), 0.0), age_s=age_s)
        return [content]

    def _cacheable_length(self, status: str, headers: list[tuple[str, str]]) -> int | None:
        """The length of the body if the response may be cached, else None."""
        if not status.startswith('200'):
            return None
        values = {name.lower(): value for name, value in headers}
        length = values.get('content-length', '')
        if not (length.isascii() and length.isdigit() and len(length) <= MAX_NUMBER_DIGITS):
            return None
        if not _UNCACHEABLE_RESPONSE_HEADERS.isdisjoint(values):
            return None
        return int(length) if int(length) <= self._max_body_bytes else None


def _key(environ: WSGIEnvironment) -> tuple[str, ...]:
    instance: environ_keys.Instance = environ[environ_keys.INSTANCE]
    target = environ.get('RAW_URI')
    if target is None:
        target = environ.get('SCRIPT_NAME', '') + environ.get('PATH_INFO', '')
        if environ.get('QUERY_STRING'):
            target += '?' + environ['QUERY_STRING']
    get = environ.get
    return (
        instance.instance_id, instance.project_id, environ[environ_keys.SOURCE].address, target,
        get('HTTP_ACCEPT', ''), get('HTTP_ACCEPT_ENCODING', ''), get('HTTP_ACCEPT_LANGUAGE', ''),
        get('HTTP_ACCEPT_CHARSET', ''),
    )  # fmt: skip


def _is_cacheable(target: str) -> bool:
    return (
        target.startswith('/')
        and len(target) <= MAX_PATH_LENGTH
        and 'password' not in target.lower()
        and not any(spelling in target for spelling in _NON_CANONICAL)
    )


def pack(response: CachedResponse) -> Any:
    """A response as JSON types."""
    return [response.status, response.headers, base64.b64encode(response.body).decode()]


def unpack(packed: Any) -> CachedResponse:
    """Reverse ``pack``. Raises TypeError or ValueError if ``packed`` is not a result of ``pack``."""
    status, headers, body = packed
    pairs = [(name, value) for name, value in headers]
    if not all(isinstance(text, str) and text.isprintable() for text in (status, *(t for pair in pairs for t in pair))):
        raise TypeError('status or headers are not text')
    return CachedResponse(status, pairs, base64.b64decode(body, validate=True))


def make_cache(conf: Any) -> LocalCache:
    """The cache with the configured size and backend."""
    backend = None
    if conf.answer_cache_shared:
        region = shared.connect(conf.cache_url, max_ttl_s=conf.answer_cache_seconds)
        backend = region and shared.SharedCache(region, 'answer', pack=pack, unpack=unpack)
    return LocalCache(
        limit=conf.answer_cache_mebibytes << 20,
        weigh=lambda response: len(response.body) + ENTRY_BYTES,
        owner_of=lambda key: str(key[0]),
        backend=backend,
    )


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], ResponseCacheFilter]:
    """For ``use = egg:metadata_wsgi#response_cache``."""
    conf = config_files.load(global_conf, [*OPTS, *shared.OPTS])
    return lambda app: ResponseCacheFilter(
        app,
        cache=make_cache(conf),
        ttl_s=conf.answer_cache_seconds,
        max_body_bytes=conf.answer_cache_largest_body,
    )
