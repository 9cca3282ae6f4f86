# SPDX-License-Identifier: Apache-2.0
"""Remember what Nova told an instance, for seconds, and tell it again. Stands after instance.

A guest reads the same few answers again and again: this gives it the same bytes without asking Nova. Kept are
answers to GET only, status 200 only, of at most ``answer_cache_largest_body`` bytes, for ``answer_cache_seconds``.
Never kept: what a path with ``password`` in it answers; requests with a query, an odd spelling of the path, a body, a
range, a condition or a session token; answers with ``Set-Cookie``, ``Cache-Control`` or ``Vary``. Identical
requests at the same time are one request to Nova.

An answer is kept for one instance, its project, the guest's address, the path and the ``Accept*`` headers together;
no guest is told another's. Nova's ``random_seed`` in meta_data.json is then the same for an instance that reads it
twice within these seconds. Whatever may refuse a guest (``session_token``, ``path_policy``, ``rate_limit``) must
stand before it.

``answer_cache_shared`` puts the answers into ``cache_url`` too: user-data and keys are among them, and who reads that
server reads them. Reads SOURCE, INSTANCE and DEADLINE, establishes nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from metadata_wsgi.cache import shared
from metadata_wsgi.cache.local import LocalCache, Ttl
from metadata_wsgi.cache.single_flight import jittered
from metadata_wsgi.config import config_files
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = [
    cfg.FloatOpt(
        'answer_cache_seconds',
        default=5.0,
        min=0.1,
        max=600.0,
        help='For the filter cache_answers: how many seconds after Nova gave it an answer may be given again.',
    ),
    cfg.IntOpt(
        'answer_cache_largest_body',
        default=65536,
        min=0,
        max=1 << 20,
        help='For the filter cache_answers: the largest body in bytes that is kept.',
    ),
    cfg.IntOpt(
        'answer_cache_mebibytes',
        default=64,
        min=1,
        help='For the filter cache_answers: how much a worker keeps; the oldest goes first.',
    ),
    cfg.BoolOpt(
        'answer_cache_shared',
        default=False,
        help='For the filter cache_answers: keep the answers, user-data among them, in cache_url too.',
    ),
]

# With any of these an answer is for one request only.
_PARTICULAR = (
    'HTTP_RANGE', 'HTTP_IF_MATCH', 'HTTP_IF_NONE_MATCH', 'HTTP_IF_MODIFIED_SINCE', 'HTTP_IF_UNMODIFIED_SINCE',
    'HTTP_X_AWS_EC2_METADATA_TOKEN', 'HTTP_AUTHORIZATION', 'HTTP_COOKIE', 'HTTP_TRANSFER_ENCODING',
)  # fmt: skip
_PARTICULAR_ANSWER = frozenset({'set-cookie', 'cache-control', 'vary', 'content-range', 'www-authenticate'})
# Other spellings of a path are other keys: they would only be a way to fill the memory.
_ODD = ('//', '/.', '%', '?', '#', '\\')
LONGEST_PATH = 256
ENTRY_BYTES = 2048
"""What an entry weighs beside its body, about."""


@dataclass(frozen=True, slots=True)
class Told:
    """An answer of Nova's, whole."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    def __call__(self, start_response: StartResponse) -> Iterable[bytes]:
        """Tell it."""
        start_response(self.status, list(self.headers))
        return [self.body]


class CacheAnswersFilter:
    """Answers from ``memory`` what is there; a new answer is kept for ``seconds``."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.INSTANCE, environ_keys.DEADLINE})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, memory: LocalCache, seconds: float, largest_body: int) -> None:
        self.app = app
        self._memory = memory
        self._seconds = seconds
        self._largest_body = largest_body

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer, or go on and remember the answer."""
        if environ['REQUEST_METHOD'] != 'GET':
            return self.app(environ, start_response)
        for name in _PARTICULAR:
            if name in environ:
                return self.app(environ, start_response)
        key = _key(environ)
        kept = self._memory.fresh(key)
        if kept is not None:
            told: Told = kept.value
            return told(start_response)
        if not _may_be_kept(key[3]) or environ.get('CONTENT_LENGTH', '') not in ('', '0'):
            return self.app(environ, start_response)
        return self._once(key, environ, start_response)

    def _once(self, key: tuple[str, ...], environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        flight, leads = self._memory.join(key)
        if not leads:
            flight.wait(environ[environ_keys.DEADLINE].remaining_s())
            kept = self._memory.fresh(key)
            return kept.value(start_response) if kept is not None else self.app(environ, start_response)
        try:
            kept = self._memory.fetch(key)
            if kept is not None:
                told: Told = kept.value
                return told(start_response)
            return self._ask(key, environ, start_response)
        finally:
            self._memory.leave(key, flight)

    def _ask(self, key: tuple[str, ...], environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        heard: list[tuple[str, list[tuple[str, str]]]] = []

        def listen(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
            heard[:] = [(status, list(headers))]
            return start_response(status, headers) if exc_info is None else start_response(status, headers, exc_info)

        body = self.app(environ, listen)
        length = self._length(*heard[0]) if heard else None
        if length is None:
            return body
        try:
            content = b''.join(body)
        finally:
            if hasattr(body, 'close'):
                body.close()
        if len(content) == length:
            self._memory.keep(key, Told(*heard[0], content), Ttl(jittered(self._seconds), 0.0))
        return [content]

    def _length(self, status: str, headers: list[tuple[str, str]]) -> int | None:
        """The length of the body of an answer that may be kept."""
        if not status.startswith('200'):
            return None
        said = {name.lower(): value for name, value in headers}
        length = said.get('content-length', '')
        if not (length.isascii() and length.isdigit()) or not _PARTICULAR_ANSWER.isdisjoint(said):
            return None
        return int(length) if int(length) <= self._largest_body else None


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


def _may_be_kept(target: str) -> bool:
    return (
        target.startswith('/')
        and len(target) <= LONGEST_PATH
        and 'password' not in target.lower()
        and not any(spelling in target for spelling in _ODD)
    )


def pack(told: Told) -> Any:
    """What JSON can carry of an answer."""
    return [told.status, told.headers, base64.b64encode(told.body).decode()]


def unpack(packed: Any) -> Told:
    """The answer again. TypeError or ValueError for what is none."""
    status, headers, body = packed
    pairs = [(name, value) for name, value in headers]
    if not all(isinstance(text, str) and text.isprintable() for text in (status, *(t for pair in pairs for t in pair))):
        raise TypeError('a head that is no text')
    return Told(status, pairs, base64.b64decode(body, validate=True))


def memory(conf: Any) -> LocalCache:
    """The memory that the options describe."""
    behind = None
    if conf.answer_cache_shared:
        region = shared.connect(conf.cache_url, longest_s=conf.answer_cache_seconds)
        behind = region and shared.SharedCache(region, 'answer', pack=pack, unpack=unpack)
    return LocalCache(
        limit=conf.answer_cache_mebibytes << 20,
        weigh=lambda told: len(told.body) + ENTRY_BYTES,
        owner=lambda key: str(key[0]),
        behind=behind,
    )


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], CacheAnswersFilter]:
    """For ``use = egg:metadata_wsgi#cache_answers``."""
    conf = config_files.load(global_conf, [*OPTS, *shared.OPTS])
    return lambda app: CacheAnswersFilter(
        app,
        memory=memory(conf),
        seconds=conf.answer_cache_seconds,
        largest_body=conf.answer_cache_largest_body,
    )
