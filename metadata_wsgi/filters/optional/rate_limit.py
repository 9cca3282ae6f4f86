# SPDX-License-Identifier: Apache-2.0
"""Limits the requests per minute of each client. Above the limit: 429 with Retry-After. Off by default.

The unit is a boot, because a boot with cloud-init is 28 requests in 0.2 s. cloud-init 22.4.2 does not retry after 429,
so an instance may boot without its metadata. The limit must stop endless loops and never a boot. So
``boots_per_minute`` is at least 2, which allows a boot and an immediate reboot.

The position of the filter in the pipeline defines what a client is. After ``instance``, a client is a port with all its
addresses: IPv4, IPv6 and link-local. Between ``header_source`` and ``instance``, a client is an address behind a router
or on a network. In this position the filter also limits the lookups, but an instance with two addresses has two
counters. Headers and paths have no effect on the counter. So a client cannot avoid its own counter or use up the
counter of another client.

``storage_url`` selects where the counters are stored. With ``memory://`` each worker process has its own counters, so a
client gets up to ``metadata_workers`` times the limit. With ``redis://host:6379`` and ``memcached://host:11211`` all
workers and hosts share the counters. While the store is unavailable, all requests pass, and a warning is logged once a
minute. The filter reads SOURCE, and INSTANCE if it is set.
"""

from __future__ import annotations

import functools
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
        help='Largest number of boots of an instance in a minute. A boot is 28 requests. Further requests get 429 with '
        'Retry-After.',
    ),
    cfg.StrOpt(
        'storage_url',
        default='memory://',
        secret=True,
        deprecated_name='counters',
        help='Store of the counters: memory:// (each worker has its own), or redis://[:password@]host:port or '
        'memcached://host:port (all workers and hosts share them).',
    ),
]

REQUESTS_PER_BOOT = 28
"""Requests of one boot with cloud-init's OpenStack datasource. With its EC2 datasource there are 26."""
WINDOW_S = 60
RETRY_AFTER_FAILURE_S = 5.0
"""After a failure the store is not used for this time, so that the next requests do not wait for its timeout too."""
STORE_TIMEOUT_S = 0.2
STORE_SCHEMES = ('memory', 'redis', 'rediss', 'redis+unix', 'memcached')


class StoreUnavailable(Exception):
    """The store of the counters is unavailable."""


class Counters(Protocol):
    """Counts requests. :class:`StoredCounters` is the implementation. Shared by all threads of a worker."""

    def hit(self, client: str) -> float:
        """Count one request of ``client``. Returns 0 if it may pass, else the seconds until a request may pass.

        Raises StoreUnavailable if the store does not respond.
        """


class RateLimitFilter:
    """Responds 429 to requests above the limit of ``counters``."""

    REQUIRES = frozenset({environ_keys.SOURCE})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self, app: WSGIApplication, *, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app = app
        self._counters = counters
        self._clock = clock
        self._retry_at_s = 0.0
        self._unavailable_log = Throttle(LOG_INTERVAL_S, clock)
        self._limited_log = Throttle(LOG_INTERVAL_S, clock)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Count the request, then call the next filter or respond 429."""
        wait_s = self._wait_s(_client(environ))
        if not wait_s:
            return self.app(environ, start_response)
        if self._limited_log.allow():
            LOG.warning('%s is above the rate limit and gets 429', environ[environ_keys.SOURCE])
        environ[environ_keys.FAILURE] = environ_keys.Failure(429, 'over the rate limit')
        return error_responses.too_many_requests(max(1, math.ceil(wait_s)))(environ, start_response)

    def _wait_s(self, client: str) -> float:
        if self._clock() < self._retry_at_s:
            return 0.0
        try:
            return self._counters.hit(client)
        except StoreUnavailable as error:
            self._retry_at_s = self._clock() + RETRY_AFTER_FAILURE_S
            if self._unavailable_log.allow():
                LOG.warning('The store of rate_limit is unavailable, so all requests pass: %s', error)
            return 0.0


def _client(environ: WSGIEnvironment) -> str:
    """The name of the client's counter. It has no blanks, because a blank ends a key of memcached."""
    instance: environ_keys.Instance | None = environ.get(environ_keys.INSTANCE)
    if instance:
        return f'port/{instance.port_id}'
    source: environ_keys.Source = environ[environ_keys.SOURCE]
    where = f'router/{source.router_id}' if source.router_id else f'network/{source.network_id}'
    return f'{where}/{source.address}' + (f'%{source.interface}' if source.interface else '')


class StoredCounters:
    """Counters with a sliding window in the store at ``url``.

    Raises ConfigError if the store is unknown or its library is not installed.
    """

    def __init__(self, url: str, *, requests_per_minute: int) -> None:
        self._item = limits.RateLimitItemPerMinute(requests_per_minute, namespace='metadata_wsgi')
        try:
            if url.partition('://')[0] not in STORE_SCHEMES:
                raise ValueError
            store = limits.storage.storage_from_string(url, wrap_exceptions=True, **_options(url))
            self._limiter = limits.strategies.SlidingWindowCounterRateLimiter(store)
        except (limits.errors.ConfigurationError, NotImplementedError, ImportError, ValueError):
            # The URL and the error may contain a password, the URL also before "://" if it is malformed.
            scheme, separator, _ = url.partition('://')
            shown = scheme if separator and scheme.replace('+', '').isalnum() else ''
            raise ConfigError(
                f'storage_url = {shown}://... in [{GROUP}]: no such store, or its library is not '
                'installed (redis, pymemcache); memory:// needs no library'
            ) from None

    def hit(self, client: str) -> float:
        """See :meth:`Counters.hit`."""
        try:
            if self._limiter.hit(self._item, client):
                return 0.0
            resets_at_s = self._limiter.get_window_stats(self._item, client).reset_time
        except limits.errors.StorageError as error:
            raise StoreUnavailable(type(error.storage_error).__name__) from error
        except OSError as error:
            raise StoreUnavailable(type(error).__name__) from error
        return min(WINDOW_S, max(1.0, resets_at_s - time.time()))


def _options(url: str) -> dict[str, Any]:
    """Options for the client library of the store: short timeouts and no retry."""
    if url.startswith('memcached:'):
        # The library limits calls this function once per greenlet. All greenlets get the same connection pool.
        @functools.cache
        def shared_client(module: Any, hosts: tuple[Any, ...], **options: Any) -> Any:
            if len(hosts) == 1:
                return module.PooledClient(*hosts, **options)
            return module.HashClient(hosts, use_pooling=True, **options)

        return {
            'client_getter': lambda module, hosts, **options: shared_client(module, tuple(hosts), **options),
            'connect_timeout': STORE_TIMEOUT_S,
            'timeout': STORE_TIMEOUT_S,
        }
    if url.startswith('memory:'):
        return {}
    return {'socket_connect_timeout': STORE_TIMEOUT_S, 'socket_timeout': STORE_TIMEOUT_S, 'retry': None}


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], RateLimitFilter]:
    """For ``use = egg:metadata_wsgi#rate_limit``."""
    conf = config_files.load(global_conf, OPTS, GROUP).rate_limit
    counters = StoredCounters(conf.storage_url, requests_per_minute=REQUESTS_PER_BOOT * conf.boots_per_minute)
    return lambda app: RateLimitFilter(app, counters=counters)
