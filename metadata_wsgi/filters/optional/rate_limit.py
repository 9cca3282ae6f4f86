# SPDX-License-Identifier: Apache-2.0
"""At most so many requests a minute for each guest, above it 429 with Retry-After. Off by default.

Counted in boots, because that is what a guest does: one boot of cloud-init is 28 requests in 0.2 s, and
it gives up its whole configuration over one 429. So the limit is for what asks for ever, not for what
boots; ``boots_per_minute`` is at least 2, so that a guest that boots and reboots at once never meets it.

Where it stands decides what counts as one guest. Behind ``instance`` that is a port, whatever address it asks
from: IPv4, IPv6 and link-local together. Between ``source`` and ``instance`` it is (address, router or
network): the lookups are spared too, but a guest with two addresses has two counters. It reads no word of
the guest's, so a guest can neither leave its counter nor fill another's.

``counters`` is where they live: ``memory://`` (each worker process counts for itself, so the limit is
up to ``metadata_workers`` times as high), ``redis://host:6379``, ``memcached://host:11211`` (all workers and
hosts together). A store that is away lets requests pass; that is said once a minute.
Reads SOURCE, and INSTANCE where it is there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import limits
import limits.storage
import limits.strategies
from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.http import error_responses
from metadata_wsgi.limits import LOG_INTERVAL_S
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

GROUP = 'rate_limit'
OPTS = [
    cfg.IntOpt(
        'boots_per_minute',
        default=10,
        min=2,
        max=100000,
        help='How often a guest may boot in a minute; one boot is 28 requests. Above it: 429 with Retry-After.',
    ),
    cfg.StrOpt(
        'counters',
        default='memory://',
        secret=True,
        help='Where the counters live: memory://, or for all workers and hosts together redis://[:password@]host:port '
        'or memcached://host:port.',
    ),
]

BOOT = 28
"""Requests of one boot of cloud-init with the OpenStack datasource; with the EC2 datasource it is 26."""
WINDOW_S = 60
ASIDE_S = 5.0
"""A store that failed is not asked for so long: a guest must not wait for it again and again."""
STORE_S = 0.2
STORES = ('memory', 'redis', 'rediss', 'redis+unix', 'memcached')


class CountersAway(Exception):
    """The store of the counters cannot be asked now."""


class Counters(Protocol):
    """Counts requests; :class:`StoredCounters` is the real one. Shared by all threads of a worker."""

    def hit(self, guest: str) -> float:
        """Count one request of ``guest``: 0 if it may pass, else in how many seconds it may ask again.

        Raises CountersAway.
        """


class RateLimitFilter:
    """429 for a guest that ``counters`` say has asked too often."""

    REQUIRES = frozenset({environ_keys.SOURCE})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self, app: WSGIApplication, *, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app = app
        self._counters = counters
        self._clock = clock
        self._aside = {'until_s': 0.0}
        self._seldom = Throttle(LOG_INTERVAL_S, clock)
        self._seldom_limited = Throttle(LOG_INTERVAL_S, clock)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Count and go on, or answer 429."""
        wait_s = self._wait_s(_guest(environ))
        if not wait_s:
            return self.app(environ, start_response)
        if self._seldom_limited.allow():
            LOG.warning('%s asks too often and is answered 429', environ[environ_keys.SOURCE])
        return error_responses.too_many_requests(max(1, math.ceil(wait_s)))(environ, start_response)

    def _wait_s(self, guest: str) -> float:
        if self._clock() < self._aside['until_s']:
            return 0.0
        try:
            return self._counters.hit(guest)
        except CountersAway as error:
            self._aside['until_s'] = self._clock() + ASIDE_S
            if self._seldom.allow():
                LOG.warning('The counters of rate_limit are away, so every request passes: %s', error)
            return 0.0


def _guest(environ: WSGIEnvironment) -> str:
    """The name of the guest's counter; without blanks, which memcached takes for the end of a key."""
    instance: environ_keys.Instance | None = environ.get(environ_keys.INSTANCE)
    if instance:
        return f'port/{instance.port_id}'
    source: environ_keys.Source = environ[environ_keys.SOURCE]
    where = f'router/{source.router_id}' if source.router_id else f'network/{source.network_id}'
    return f'{where}/{source.address}'


class StoredCounters:
    """Counters of ``requests_per_minute`` in the store at ``url``, by a window that slides.

    Raises ConfigError for a URL that names no store, or one whose library is not installed.
    """

    def __init__(self, url: str, *, requests_per_minute: int) -> None:
        self._item = limits.RateLimitItemPerMinute(requests_per_minute, namespace='metadata_wsgi')
        try:
            if url.partition('://')[0] not in STORES:
                raise ValueError
            store = limits.storage.storage_from_string(url, wrap_exceptions=True, **_options(url))
            self._limiter = limits.strategies.SlidingWindowCounterRateLimiter(store)
        except (limits.errors.ConfigurationError, NotImplementedError, ImportError, ValueError):
            # The URL may have a password, and so may the error.
            raise ConfigError(
                f'counters = {url.partition("://")[0]}://... in [{GROUP}]: no such store, or its library is not '
                'installed (redis, pymemcache); memory:// is always there'
            ) from None

    def hit(self, guest: str) -> float:
        """Count one request of ``guest``."""
        try:
            if self._limiter.hit(self._item, guest):
                return 0.0
            resets_at_s = self._limiter.get_window_stats(self._item, guest).reset_time
        except limits.errors.StorageError as error:
            raise CountersAway(type(error.storage_error).__name__) from error
        except OSError as error:
            raise CountersAway(type(error).__name__) from error
        return min(WINDOW_S, max(1.0, resets_at_s - time.time()))


def _options(url: str) -> dict[str, Any]:
    """What a client of that store is told so that a guest does not wait for it: short, and no second try."""
    if url.startswith('memcached:'):
        made: list[Any] = []

        def one_for_all_greenlets(module: Any, hosts: Any, **options: Any) -> Any:
            if not made:
                one = len(hosts) == 1
                made.append(
                    module.PooledClient(*hosts, **options)
                    if one
                    else module.HashClient(hosts, use_pooling=True, **options)
                )
            return made[0]

        return {'client_getter': one_for_all_greenlets, 'connect_timeout': STORE_S, 'timeout': STORE_S}
    if url.startswith('memory:'):
        return {}
    return {'socket_connect_timeout': STORE_S, 'socket_timeout': STORE_S, 'retry': None}


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], RateLimitFilter]:
    """For ``use = egg:metadata_wsgi#rate_limit``."""
    conf = config_files.load(global_conf, OPTS, GROUP).rate_limit
    counters = StoredCounters(conf.counters, requests_per_minute=BOOT * conf.boots_per_minute)
    return lambda app: RateLimitFilter(app, counters=counters)
