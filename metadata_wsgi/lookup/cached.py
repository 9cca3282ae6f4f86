# SPDX-License-Identifier: Apache-2.0
"""A cache for a lookup: one lookup for concurrent requests, and stale results while the lookup is unavailable.

The time for which a result is cached depends on the result:

- Exactly one instance: 60 % to 80 % of ``fresh_s``. The time is random, so that instances that booted together are not
  looked up together again. While the lookup is unavailable, the result is used for up to ``stale_s``.
- No instance or several: at most ``not_found_s``, because an instance with the address may just be created. Such a
  result is never used after that time.

A lookup may cache the networks of a router separately (``networks_cache``), for a fifth of ``fresh_s``. An instance is
cached for at most four fifths of ``fresh_s``. So a fresh result never depends on data that is older than ``fresh_s``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from metadata_wsgi import instruments
from metadata_wsgi.cache.local import LocalCache, Ttl
from metadata_wsgi.cache.single_flight import SingleFlight, jittered
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.lookup.protocol import InstanceLookup, StepCache
from metadata_wsgi.pipeline.environ_keys import Instance, Source

NETWORKS_TIME_SHARE = 0.2
"""The networks of a router are cached for this part of ``fresh_s``."""
MIN_REVALIDATE_AGE_S = 1.0
"""A younger result is not looked up again: one boot may get several 404s from Nova in a fraction of a second."""


class CachedLookup:
    """Finds instances in ``cache``, else through ``lookup``. All times are in seconds."""

    def __init__(
        self, lookup: InstanceLookup, cache: LocalCache, *, fresh_s: float, not_found_s: float, stale_s: float
    ) -> None:
        self._lookup = lookup
        self._cache = cache

        def ttl_of(found: Sequence[Instance]) -> Ttl:
            if len(found) != 1:
                return Ttl(jittered(not_found_s), 0.0)
            return Ttl(jittered(fresh_s * (1 - NETWORKS_TIME_SHARE)), stale_s)

        self._results = SingleFlight(cache, ttl_of=ttl_of, group_of=_router_or_network, name='lookup')

    def find(self, source: Source, deadline: Deadline) -> Sequence[Instance]:
        """The instances that match ``source``, from the cache or the lookup. Raises as ``SingleFlight`` does."""
        found: Sequence[Instance] = self._results(_key(source), self._load(source), deadline)
        return found

    def cached(self, source: Source) -> Instance | None:
        """The instance of ``source`` if it is in the cache and fresh, else None. Does no lookup."""
        entry = self._cache.fresh(_key(source))
        if entry is None or len(entry.value) != 1:
            return None  # ``find`` counts the miss
        instruments.CACHE_REQUESTS.add('lookup', 'hit')
        instance: Instance = entry.value[0]
        return instance

    def revalidate(self, source: Source, used: Instance, deadline: Deadline) -> bool:
        """Whether ``source`` now has another instance than ``used``, or none. Call it if Nova does not know ``used``.

        Returns True without a lookup if the cache already has another result. Returns False without a lookup if the
        cached result is younger than ``MIN_REVALIDATE_AGE_S``. Raises InstanceLookupError if the lookup fails, or if a
        failure within the last ``single_flight.RETRY_AFTER_FAILURE_S`` concerns ``source``.
        """
        key = _key(source)
        entry = self._cache.stale_ok(key) or self._cache.fresh(key)
        if entry is None:
            return tuple(self.find(source, deadline)) != (used,)
        if tuple(entry.value) != (used,):
            return True
        if self._cache.clock() - entry.loaded_at_s < MIN_REVALIDATE_AGE_S:
            return False
        if (failure := self._results.recent_failure(key)) is not None:
            raise type(failure)(f'the last lookup failed a moment ago: {failure}')
        return bool(self._results.refresh(key, entry.value, self._load(source), deadline) != entry.value)

    def invalidate(self, source: Source) -> None:
        """Remove the cached result."""
        self._cache.delete(_key(source))

    def _load(self, source: Source) -> Callable[[Deadline], Sequence[Instance]]:
        return lambda deadline: tuple(self._lookup.find(source, deadline))


def networks_cache(cache: LocalCache, *, fresh_s: float) -> StepCache:
    """The cache for the networks of routers, for use with a CachedLookup with the same ``fresh_s``."""
    return SingleFlight(cache, ttl_of=lambda networks: Ttl(fresh_s * NETWORKS_TIME_SHARE, 0.0), name='networks')


def pack(found: Sequence[Instance]) -> Any:
    """A result as JSON types."""
    return [[one.instance_id, one.project_id, one.port_id, one.created_at_s] for one in found]


def unpack(packed: Any) -> tuple[Instance, ...]:
    """Reverse ``pack``. Raises TypeError or ValueError if ``packed`` is not a result of ``pack``."""
    instances = tuple(Instance(*one) for one in packed)
    for one in instances:
        if not all(isinstance(text, str) for text in (one.instance_id, one.project_id, one.port_id)):
            raise TypeError('an id is not text')
        if not isinstance(one.created_at_s, float | None):
            raise TypeError('the time of creation is not a number')
    return instances


def _key(source: Source) -> tuple[str, ...]:
    key = source.address, source.router_id or '', source.network_id or ''
    # Without an interface the key is the same as in version 1.0: agents of that version may share the cache.
    return (*key, source.interface) if source.interface else key


def _router_or_network(key: tuple[str, ...]) -> tuple[str, ...]:
    """The part of a key that is the same for all addresses behind one router, or on one network."""
    return key[1:3]
