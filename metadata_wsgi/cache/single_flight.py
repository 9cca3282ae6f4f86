# SPDX-License-Identifier: Apache-2.0
"""Loads values through a cache: one load for all concurrent requests with the same key, and stale entries on failure.

While one request loads a key, other requests for the key wait for the result, each at most until its own deadline. If
the source is unavailable (LookupUnavailable), a stale entry is returned. For ``RETRY_AFTER_FAILURE_S`` after this
failure, no key of the same group with a stale entry is loaded again. Otherwise each request would wait for the timeout
of the source. A key without a stale entry is always loaded.

The queries for one router may fail although the source is available, for example because the router has very many
ports. So the keys of a router are a group. Only if the loads of two groups fail, and no load succeeds between, the
source counts as down. Then a failure delays the loads of all groups.

IncompleteResult is a failure of one key. The stale entry of this key is returned, and all other keys are loaded as
usual. Otherwise a router that was deleted in Neutron, but still exists on the host, would cause stale results for the
instances of all other routers.

A load with less than ``REFRESH_TIMEOUT_S`` left does not show whether the source is available. If it fails, no stale
entry is returned. Otherwise a client that shortens the deadline of its own request could cause stale results. For the
same reason a request that waited for such a load, and has a later deadline, loads itself.
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
DOWN_AFTER_GROUPS = 2
"""The source counts as down if the loads of this many groups have failed since the last response of the source."""
MAX_DELAYED = 4096
"""Number of keys, and number of groups, whose delay is remembered. The oldest one is forgotten first."""

Load = Callable[[Deadline], Any]
"""Gets the value from the source before the deadline. Raises LookupUnavailable if the source is down."""


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
        self._failed_groups: set[Hashable] = set()
        self._retry_at_s = float('-inf')
        self._delayed_groups = LocalCache(limit=MAX_DELAYED, clock=cache.clock)
        self._incomplete_keys = LocalCache(limit=MAX_DELAYED, clock=cache.clock)

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
        if stale is not None and self.is_unavailable(key):
            instruments.CACHE_REQUESTS.add(self._name, 'stale')
            return stale.value
        return self._once(key, lambda flight: self._load_or_serve_stale(flight, key, load, deadline), deadline)

    def refresh(self, key: Hashable, doubted: Any, load: Load, deadline: Deadline) -> Any:
        """Load ``key`` again because the cached value ``doubted`` may be wrong.

        If another request has replaced ``doubted`` meanwhile, returns the new cached value without a load. If ``load``
        raises an exception, raises it too, and ``doubted`` stays in the cache.
        """
        return self._once(key, lambda flight: self._reload(flight, key, doubted, load, deadline), deadline)

    def is_unavailable(self, key: Hashable) -> bool:
        """Whether a failure within the last ``RETRY_AFTER_FAILURE_S`` concerns ``key``."""
        return (
            self.cache.clock() < self._retry_at_s
            or self._delayed_groups.fresh(self._group_of(key)) is not None
            or self._incomplete_keys.fresh(key) is not None
        )

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
        had_time = deadline.remaining_s() >= REFRESH_TIMEOUT_S
        try:
            return self._load_and_store(flight, key, load, deadline)
        except LookupUnavailable as error:
            if had_time:
                self._delay_loads(key, error)
            raise

    def _load_or_serve_stale(self, flight: Flight, key: Hashable, load: Load, deadline: Deadline) -> Any:
        entry = self.cache.fetch(key, flight=flight)
        if entry is not None:
            instruments.CACHE_REQUESTS.add(self._name, 'hit')
            return entry.value
        stale = self.cache.stale_ok(key)
        had_time = deadline.remaining_s() >= REFRESH_TIMEOUT_S
        try:
            value = self._load_and_store(
                flight, key, load, deadline if stale is None else _at_most(deadline, REFRESH_TIMEOUT_S)
            )
        except LookupUnavailable as error:
            if stale is None or not had_time:
                raise
            self._delay_loads(key, error)
            instruments.CACHE_REQUESTS.add(self._name, 'stale')
            return stale.value
        instruments.CACHE_REQUESTS.add(self._name, 'miss')
        return value

    def _delay_loads(self, key: Hashable, error: LookupUnavailable) -> None:
        """For some seconds, load none of the keys that the failure concerns if they have a stale entry."""
        delay = Ttl(jittered(RETRY_AFTER_FAILURE_S), 0.0)
        if isinstance(error, IncompleteResult):
            self._incomplete_keys.set(key, True, delay)
            return
        group = self._group_of(key)
        self._delayed_groups.set(group, True, delay)
        if len(self._failed_groups) < DOWN_AFTER_GROUPS:
            self._failed_groups.add(group)
        if len(self._failed_groups) >= DOWN_AFTER_GROUPS:
            self._retry_at_s = self.cache.clock() + delay.fresh_s

    def _load_and_store(self, flight: Flight, key: Hashable, load: Load, deadline: Deadline) -> Any:
        began_s = self.cache.clock()
        try:
            value = load(deadline)
        except IncompleteResult:
            self._failed_groups.clear()
            raise
        self._failed_groups.clear()
        self.cache.set(key, value, self._ttl_of(value), age_s=self.cache.clock() - began_s, flight=flight)
        return value


def _at_most(deadline: Deadline, timeout_s: float) -> Deadline:
    return Deadline(min(deadline.at_s, deadline.clock() + timeout_s), deadline.clock)
