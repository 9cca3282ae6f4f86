# SPDX-License-Identifier: Apache-2.0
"""Caches briefly which instance has an address. This filter must be before instance, after header_source and deadline.

A booting instance sends 28 requests. Without this filter each request causes two queries to Neutron. The filter does
the lookup that the option ``directory`` names, through a cache, and sets INSTANCE. The later filter ``instance`` then
does nothing. Concurrent requests for the same address share one lookup. One query for the networks of a router serves
all instances behind the router.

If an address moves to another instance, the new instance gets the metadata of the old one for at most
``lookup_cache_seconds``. While Neutron is unavailable, this time is at most ``lookup_cache_stale_seconds``. The result
"no instance" is cached for ``lookup_cache_none_seconds``. Errors are not cached.

If Nova responds 404 to a GET or HEAD for a cached instance, the instance may have been deleted. Then the filter looks
the address up again before it responds. If the address now belongs to another instance, the filter sends the request to
Nova again, for this instance. If the second lookup fails, the filter requests a path from Nova that every instance has.
If Nova responds 404 or 5xx to this path, the client gets 503: with a 404 it would boot without keys.

For methods other than GET and HEAD the cache is never used, because a POST writes the instance's password.

The key of an entry is the address and the router or network of the client. So no client gets the entry of another
client. The filter reads SOURCE and DEADLINE and writes INSTANCE.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.cache import shared
from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import sleep
from metadata_wsgi.errors import ConfigError, IncompleteResult, InstanceLookupError
from metadata_wsgi.http import error_responses
from metadata_wsgi.lookup import cached, protocol
from metadata_wsgi.lookup.request_lookup import RequestLookup, log_key
from metadata_wsgi.pipeline import environ_keys, order
from metadata_wsgi.throttle import KeyedThrottle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.FloatOpt(
        'lookup_cache_seconds',
        default=10.0,
        min=0.1,
        max=600.0,
        help='For the filter lookup_cache: number of seconds for which a found instance is cached.',
    ),
    cfg.FloatOpt(
        'lookup_cache_none_seconds',
        default=1.0,
        min=0.0,
        max=60.0,
        help='For the filter lookup_cache: number of seconds for which the result "no instance" is cached. During this '
        'time the response is 404 without another lookup.',
    ),
    cfg.FloatOpt(
        'lookup_cache_stale_seconds',
        default=300.0,
        min=0.0,
        max=86400.0,
        help='For the filter lookup_cache: number of seconds for which a found instance is used while Neutron or '
        'Keystone is unavailable.',
    ),
    cfg.IntOpt(
        'lookup_cache_entries',
        default=65536,
        min=16,
        help='For the filter lookup_cache: largest number of cached lookups in a worker.',
    ),
]

PATH_OF_EVERY_INSTANCE = '/openstack'
"""If Nova responds 404 to this path, Nova does not know the instance."""
SAFE_METHODS = frozenset({'GET', 'HEAD'})
REVALIDATE_TIME_SHARE = 1 / 2
"""The second lookup gets this part of the remaining time. The rest is for the second request to Nova."""


class LookupCacheFilter:
    """Sets INSTANCE from ``cached_lookup``, which caches the results of ``lookup``."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.DEADLINE})
    PROVIDES = frozenset({environ_keys.INSTANCE})

    def __init__(
        self,
        app: WSGIApplication,
        *,
        lookup: protocol.InstanceLookup,
        cached_lookup: cached.CachedLookup,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self.app = app
        self.lookup = lookup
        self._cached_lookup = cached_lookup
        self._request_lookup = RequestLookup(cached_lookup, sleep=sleep)
        self._unknown_log = KeyedThrottle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set INSTANCE and call the next filter; once more for the new instance if the address has moved."""
        if environ_keys.INSTANCE in environ:
            return self.app(environ, start_response)
        source: environ_keys.Source = environ[environ_keys.SOURCE]
        is_safe = environ['REQUEST_METHOD'] in SAFE_METHODS
        if not is_safe:
            self._cached_lookup.invalidate(source)
        original_environ = dict(environ)
        error_response = self._set_instance(environ)
        if error_response is not None:
            return error_response(environ, start_response)
        if not is_safe or _has_body(environ):
            return self.app(environ, start_response)
        held = _HeldResponse(start_response)
        body = self.app(environ, held.start_response)
        if not held.stop_delaying():
            return body
        instance = environ[environ_keys.INSTANCE]
        unknown: InstanceLookupError | None = None
        try:
            deadline = environ[environ_keys.DEADLINE].fraction(REVALIDATE_TIME_SHARE)
            is_right = not self._cached_lookup.revalidate(source, instance, deadline)
        except InstanceLookupError as error:
            is_right = self._is_known_to_nova({**original_environ, environ_keys.INSTANCE: instance})
            unknown = error
        if is_right:
            held.release()
            return body
        if hasattr(body, 'close'):
            body.close()
        # The same dict is changed, because earlier filters (request_log, metrics) read it after the response.
        environ.clear()
        environ.update(original_environ)
        if unknown:
            if self._unknown_log.allow(log_key(source, unknown)):
                LOG.error(
                    'Requests get 503: Nova does not know the cached instance of %s (%s), and the lookup failed: %s',
                    source, instance.instance_id, unknown,
                )  # fmt: skip
            reason = f'Nova does not know the cached instance, and the lookup failed: {unknown}'
            is_of_source = isinstance(unknown, IncompleteResult)
            environ[environ_keys.FAILURE] = environ_keys.Failure(503, reason, is_of_source)
            return error_responses.unavailable()(environ, start_response)
        error_response = self._set_instance(environ)
        return (error_response or self.app)(environ, start_response)

    def _set_instance(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Set INSTANCE from the cache or by a lookup. Returns an error response if there is no instance, else None."""
        instance = self._cached_lookup.cached(environ[environ_keys.SOURCE])
        if instance is None:
            return self._request_lookup.set_instance(environ)
        environ[environ_keys.INSTANCE] = instance
        return None

    def _is_known_to_nova(self, environ: WSGIEnvironment) -> bool:
        """Whether Nova knows INSTANCE. False after 404 or 5xx. True if a later filter responds 401 or 429."""
        statuses: list[str] = []

        def start_response(status: str, headers: object, exc_info: object = None, /) -> Callable[[bytes], object]:
            statuses.append(status)
            return lambda data: None

        environ |= {'REQUEST_METHOD': 'GET', 'PATH_INFO': PATH_OF_EVERY_INSTANCE, 'QUERY_STRING': ''}
        environ['RAW_URI'] = PATH_OF_EVERY_INSTANCE
        body = self.app(environ, start_response)
        try:
            for _ in body:
                pass
        finally:
            if hasattr(body, 'close'):
                body.close()
        return not statuses[-1].startswith(('404', '5'))


class _HeldResponse:
    """A ``start_response`` that delays a 404 until the filter knows whether it will send a second request."""

    __slots__ = ('_data', '_held', '_is_holding', '_start_response')

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self._data: list[bytes] = []
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._is_holding = True

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """See PEP 3333."""
        self._held = None
        if exc_info is not None:
            return self._start_response(status, headers, exc_info)
        if self._is_holding and status.startswith('404'):
            self._held = status, headers
            return self._data.append
        return self._start_response(status, headers)

    def stop_delaying(self) -> bool:
        """Delay no further response. Returns whether a 404 was delayed."""
        self._is_holding = False
        return self._held is not None

    def release(self) -> None:
        """Send the delayed 404."""
        if self._held is not None:
            write = self._start_response(*self._held)
            for data in self._data:
                write(data)


def _has_body(environ: WSGIEnvironment) -> bool:
    return environ.get('CONTENT_LENGTH', '') not in ('', '0') or 'HTTP_TRANSFER_ENCODING' in environ


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], LookupCacheFilter]:
    """For ``use = egg:metadata_wsgi#lookup_cache``."""
    conf = config_files.load(global_conf, [*OPTS, *protocol.OPTS, *shared.OPTS])
    fresh_s, stale_s = conf.lookup_cache_seconds, conf.lookup_cache_stale_seconds
    region = shared.connect(conf.cache_url, max_ttl_s=max(fresh_s, stale_s))
    backend = region and shared.SharedCache(region, 'lookup', pack=cached.pack, unpack=cached.unpack)
    networks_cache = cached.networks_cache(LocalCache(limit=conf.lookup_cache_entries), fresh_s=fresh_s)
    lookup = protocol.load(conf.directory, global_conf, networks_cache=networks_cache)
    cached_lookup = cached.CachedLookup(
        lookup,
        LocalCache(limit=conf.lookup_cache_entries, backend=backend),
        fresh_s=fresh_s,
        not_found_s=conf.lookup_cache_none_seconds,
        stale_s=stale_s,
    )

    def wrap(app: WSGIApplication) -> LookupCacheFilter:
        if not any(environ_keys.INSTANCE in getattr(link, 'PROVIDES', ()) for link in order.chain(app)):
            raise ConfigError('no filter after lookup_cache sets the instance: put lookup_cache before instance')
        return LookupCacheFilter(app, lookup=lookup, cached_lookup=cached_lookup)

    return wrap
