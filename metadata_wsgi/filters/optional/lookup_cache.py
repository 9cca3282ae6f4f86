# SPDX-License-Identifier: Apache-2.0
"""Remember which instance is where, for seconds. Stands before instance, anywhere after source and deadline.

A boot is 28 requests; without this each asks Quantum two questions. Named in a pipeline, it lets
the directory that ``instance`` asks remember (``directories/remembering``), and puts the instance into the
request itself where it is remembered. Guests that ask the same at the same time are one question,
a hundred guests behind one router are one question for its networks.

An address that moves to another instance is told the old one's metadata for at most
``lookup_cache_seconds``; while Quantum is away for at most ``lookup_cache_stale_seconds``. "No instance
there" is remembered for ``lookup_cache_none_seconds``, a fault never.

When Nova says 404 to a remembered instance, it may be one that is no more: Quantum is asked at once, and if it
names another, a GET or HEAD is sent again as that one's, once. Whatever else a guest does than read
(it posts its password) is never done in a remembered name.

Guests cannot reach it: it goes by their position alone. Reads SOURCE and DEADLINE, establishes INSTANCE
for some requests, so ``instance`` is still needed behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from metadata_wsgi.cache import shared
from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, InstanceLookupError
from metadata_wsgi.lookup import cached
from metadata_wsgi.pipeline import environ_keys, order

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = [
    cfg.FloatOpt(
        'lookup_cache_seconds',
        default=10.0,
        min=0.1,
        max=600.0,
        help='For the filter lookup_cache: how many seconds after a lookup its instance may still be told to the guest.',
    ),
    cfg.FloatOpt(
        'lookup_cache_none_seconds',
        default=1.0,
        min=0.0,
        max=60.0,
        help='For the filter lookup_cache: for how many seconds a guest that no instance was found for hears so again.',
    ),
    cfg.FloatOpt(
        'lookup_cache_stale_seconds',
        default=300.0,
        min=0.0,
        max=86400.0,
        help='For the filter lookup_cache: the same as lookup_cache_seconds while Quantum or Keystone is away.',
    ),
    cfg.IntOpt(
        'lookup_cache_entries',
        default=65536,
        min=16,
        help='For the filter lookup_cache: lookups that a worker remembers.',
    ),
]

READS = frozenset({'GET', 'HEAD'})
RECHECK_SHARE = 1 / 2
"""Of the time that is left: the re-check must leave time for the replay."""


class CacheFilter:
    """Establishes INSTANCE where ``directory`` remembers one."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.DEADLINE})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, remembering: cached.CachedLookup) -> None:
        self.app = app
        self._directory = remembering

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Write the instance down if it is remembered, and go on; once more when it has moved."""
        if environ_keys.INSTANCE in environ:
            return self.app(environ, start_response)
        source: environ_keys.Source = environ[environ_keys.SOURCE]
        if environ['REQUEST_METHOD'] not in READS:
            self._directory.forget(source)
            return self.app(environ, start_response)
        as_it_came = dict(environ)
        instance = self._directory.known(source)
        if instance is not None:
            environ[environ_keys.INSTANCE] = instance
        first = _First(start_response)
        body = self.app(environ, first.start_response)
        if not first.decide():
            return body
        if _has_body(environ) or not self._moved(source, environ[environ_keys.DEADLINE]):
            first.release()
            return body
        if hasattr(body, 'close'):
            body.close()
        return self.app(as_it_came, start_response)

    def _moved(self, source: environ_keys.Source, deadline: Deadline) -> bool:
        try:
            return self._directory.moved(source, deadline.fraction(RECHECK_SHARE))
        except InstanceLookupError:
            return False  # nobody knows better than Nova now


class _First:
    """Holds the first answer back while it is a 404, until it is known whether there will be a second."""

    __slots__ = ('_early', '_held', '_open', '_start_response')

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self._early: list[bytes] = []
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._open = True

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """As the server's."""
        self._held = None
        if exc_info is not None:
            return self._start_response(status, headers, exc_info)
        if self._open and status.startswith('404'):
            self._held = status, headers
            return self._early.append
        return self._start_response(status, headers)

    def decide(self) -> bool:
        """Whether a 404 is held back; what comes later than this is not."""
        self._open = False
        return self._held is not None

    def release(self) -> None:
        """It is the answer after all."""
        if self._held is not None:
            write = self._start_response(*self._held)
            for data in self._early:
                write(data)


def _has_body(environ: WSGIEnvironment) -> bool:
    return environ.get('CONTENT_LENGTH', '') not in ('', '0') or 'HTTP_TRANSFER_ENCODING' in environ


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], CacheFilter]:
    """For ``use = egg:metadata_wsgi#lookup_cache``."""
    conf = config_files.load(global_conf, [*OPTS, *shared.OPTS])
    fresh_s, stale_s = conf.lookup_cache_seconds, conf.lookup_cache_stale_seconds
    region = shared.connect(conf.cache_url, longest_s=max(fresh_s, stale_s))

    def wrap(app: WSGIApplication) -> CacheFilter:
        asks = next((link for link in order.chain(app) if hasattr(link, 'directory')), None)
        if asks is None:
            raise ConfigError('no filter behind lookup_cache asks a directory: put lookup_cache before instance')
        behind = region and shared.SharedCache(region, 'lookup', pack=cached.pack, unpack=cached.unpack)
        asks.directory = cached.CachedLookup(
            asks.directory,
            LocalCache(limit=conf.lookup_cache_entries, behind=behind),
            LocalCache(limit=conf.lookup_cache_entries),
            fresh_s=fresh_s,
            none_s=conf.lookup_cache_none_seconds,
            stale_s=stale_s,
        )
        return CacheFilter(app, remembering=asks.directory)

    return wrap
