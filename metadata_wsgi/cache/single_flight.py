# SPDX-License-Identifier: Apache-2.0
"""Loads values through a cache: one load for all concurrent requests with the same key, and stale entries on failure.

While one request loads a key, other requests for the key wait for the result, each at most until its own deadline. If
the load fails (LookupUnavailable), a stale entry is returned. For ``RETRY_AFTER_FAILURE_S`` after this failure, no key
of the same group with a stale entry is loaded again. Otherwise each request would wait for the timeout of the source. A
key without a stale entry is always loaded.

The keys of a router are a group, because the queries for one router may fail although the source is available, for
example if the router has very many ports. If loads of ``UNAVAILABLE_AFTER_GROUPS`` groups fail, the source is
unavailable. Then each failure delays the loads of all groups. A failed load does not count for this if another load got
a result while it waited, or afterwards.

IncompleteResult is a failure of one key. The stale entry of this key is returned, and all other keys are loaded as
usual. Otherwise a router that was deleted in Neutron, but still exists on the host, would cause stale results for the
instances of all other routers.

A load with less than ``REFRESH_TIMEOUT_S`` left delays no load if it fails, and no stale entry is returned. Otherwise a
client that shortens the deadline of its own request could cause stale results. For the same reason a request that
waited for such a load, and has a later deadline, loads itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

from metadata_wsgi import instruments
from metadata_wsgi.cache.local import Flight, LocalCache, Ttl
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import IncompleteResult, LookupUnavailable

RETRY_AFTER_FAILURE_S = 5.0
REFRESH_TIMEOUT_S = 2.0
"""Timeout of a load if a stale entry can be served instead."""
UNAVAILABLE_AFTER_GROUPS = 2
"""The source is unavailable if loads of this many groups have failed since the last load with a result."""
MAX_DELAYED = 4096
"""Number of keys, and number of groups, whose delay is remembered. The oldest one is forgotten first."""

Load = Callable[[Deadline], Any]
"""Gets the value from the source before the deadline. Raises LookupUnavailable if there is no result now."""


def jittered(seconds: float) -> float:
    """A random time between 75 % and 100 % of ``seconds``. So entries loaded together expire at different times."""
    return seconds * random.uniform(0.75, 1.0)  # noqa: S311 (no secret, only spread)


class SingleFlight:
    """Stores loaded values in ``cache``. Shared by all threads of a worker.

    ``ttl_of`` returns the TTL of a value, ``group_of`` the group of a key. By default all keys are one group. ``name``
    is a label of the metric that counts cache requests.
    """

    def __init__(
        self,
        cache: LocalCache,
        *,
        ttl_of: Callable[[Any], Ttl],
        group_of: Callable[[Any], Hashable] = lambda key: None,
        name: str,
    ) -> None:
        self.cache = cache
        self._name = name
        self._ttl_of = ttl_of
        self._group_of = group_of
        # Since the last load with a result, which ended at _loaded_at_s.
        self._failed_groups: set[Hashable] = set()
        self._loaded_at_s = float('-inf')
        # The values of these caches are the failures that delay loads.
        self._failures_of_all = LocalCache(limit=1, clock=cache.clock)
        self._failures_of_group = LocalCache(limit=MAX_DELAYED, clock=cache.clock)
        self._failures_of_key = LocalCache(limit=MAX_DELAYED, clock=cache.clock)

    def __call__(self, key: Hashable, load: Load, deadline: Deadline) -> Any:
        """The cached value of ``key``, else the value that ``load`` returns. Raises the exceptions of ``load``.

        If ``load`` raises LookupUnavailable although it had ``REFRESH_TIMEOUT_S``, returns the stale value, if there is
        one. A request that waits for the ``load`` of another request raises LookupUnavailable at its own deadline.
        """
        entry = self.cache.fresh(key)
        if entry is not None:
            instruments.CACHE_REQUESTS.add(self._name, 'hit')
            return entry.value
        stale = self.cache.stale_ok(key)
        if stale is not None and self.recent_failure(key) is not None:
            instruments.CACHE_REQUESTS.add(self._name, 'stale')
            return stale.value
        return self._once(key, lambda flight: self._load_or_serve_stale(flight, key, load, deadline), deadline)

    def refresh(self, key: Hashable, doubted: Any, load: Load, deadline: Deadline) -> Any:
        """Load ``key`` again because the cached value ``doubted`` may be wrong.

        If another request has replaced ``doubted`` meanwhile, returns the new cached value without a load. If ``load``
        raises an exception, raises it too, and ``doubted`` stays in the cache.
        """
        return self._once(key, lambda flight: self._reload(flight, key, doubted, load, deadline), deadline)

    def recent_failure(self, key: Hashable) -> LookupUnavailable | None:
        """The failure within the last ``RETRY_AFTER_FAILURE_S`` that delays loads of ``key``, else None."""
        entry = (
            self._failures_of_all.fresh(None)
            or self._failures_of_group.fresh(self._group_of(key))
            or self._failures_of_key.fresh(key)
        )
        if entry is None:
            return None
        failure: LookupUnavailable = entry.value
        return failure

    def _once(self, key: Hashable, find: Callable[[Flight], Any], deadline: Deadline) -> Any:
        while True:
            flight, leads = self.cache.join(key)
            if leads:
                break
            instruments.CACHE_REQUESTS.add(self._name, 'miss')
            if not flight.wait(deadline.remaining_s()):
                raise LookupUnavailable('the deadline passed while another request did the same lookup')
            if flight.result is not None:
                return flight.result[0]
            error = flight.error or LookupUnavailable('another request that did the same lookup was aborted')
            if flight.too_short_until_s is None or deadline.at_s <= flight.too_short_until_s:
                raise error
        if deadline.remaining_s() < REFRESH_TIMEOUT_S:
            flight.too_short_until_s = deadline.at_s
        try:
            value = find(flight)
            flight.result = (value,)
        except Exception as error:
            flight.error = error
            raise
        finally:
            self.cache.leave(key, flight)
        return value

    def _reload(self, flight: Flight, key: Hashable, doubted: Any, load: Load, deadline: Deadline) -> Any:
        entry = self.cache.fresh(key)
        if entry is not None and entry.value is not doubted:
            return entry.value
        had_time, began_s = deadline.remaining_s() >= REFRESH_TIMEOUT_S, self.cache.clock()
        try:
            return self._load_and_store(flight, key, load, deadline)
        except LookupUnavailable as error:
            if had_time:
                self._delay_loads(key, error, began_s)
            raise

    def _load_or_serve_stale(self, flight: Flight, key: Hashable, load: Load, deadline: Deadline) -> Any:
        entry = self.cache.fetch(key, flight=flight)
        if entry is not None:
            instruments.CACHE_REQUESTS.add(self._name, 'hit')
            return entry.value
        stale = self.cache.stale_ok(key)
        had_time, began_s = deadline.remaining_s() >= REFRESH_TIMEOUT_S, self.cache.clock()
        try:
            value = self._load_and_store(
                flight, key, load, deadline if stale is None else _at_most(deadline, REFRESH_TIMEOUT_S)
            )
        except LookupUnavailable as error:
            if stale is None or not had_time:
                raise
            self._delay_loads(key, error, began_s)
            instruments.CACHE_REQUESTS.add(self._name, 'stale')
            return stale.value
        instruments.CACHE_REQUESTS.add(self._name, 'miss')
        return value

    def _delay_loads(self, key: Hashable, error: LookupUnavailable, began_s: float) -> None:
        """After a failed load that began at ``began_s``: delay the loads that the failure concerns."""
        delay = Ttl(jittered(RETRY_AFTER_FAILURE_S), 0.0)
        # A copy has no traceback, which would keep the frames of the request in memory.
        failure = type(error)(str(error))
        if isinstance(failure, IncompleteResult):
            self._failures_of_key.set(key, failure, delay)
            return
        group = self._group_of(key)
        self._failures_of_group.set(group, failure, delay)
        if self._loaded_at_s >= began_s:
            return
        if len(self._failed_groups) < UNAVAILABLE_AFTER_GROUPS:
            self._failed_groups.add(group)
        if len(self._failed_groups) >= UNAVAILABLE_AFTER_GROUPS:
            self._failures_of_all.set(None, failure, delay)

    def _load_and_store(self, flight: Flight, key: Hashable, load: Load, deadline: Deadline) -> Any:
        began_s = self.cache.clock()
        try:
            value = load(deadline)
        except IncompleteResult:
            self._record_result()
            raise
        self._record_result()
        self.cache.set(key, value, self._ttl_of(value), age_s=self.cache.clock() - began_s, flight=flight)
        return value

    def _record_result(self) -> None:
        """The source is available. An IncompleteResult shows that too."""
        self._loaded_at_s = self.cache.clock()
        self._failed_groups.clear()


def _at_most(deadline: Deadline, timeout_s: float) -> Deadline:
    return Deadline(min(deadline.at_s, deadline.clock() + timeout_s), deadline.clock)
