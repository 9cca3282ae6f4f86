# SPDX-License-Identifier: Apache-2.0
"""Read through a cache: one load for all requests that need the same key, and stale entries while the source is down.

A request that finds a load of its key in flight waits for the result, within its own deadline. When the source is
unavailable (LookupUnavailable), an entry that may be served stale is returned instead, and for
``RETRY_AFTER_FAILURE_S`` no request that has such an entry tries the source: otherwise each of them would wait
for the same timeout. A request without such an entry always tries.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

from metadata_wsgi.cache.local import Flight, LocalCache, Ttl
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import LookupUnavailable

RETRY_AFTER_FAILURE_S = 5.0
REFRESH_TIMEOUT_S = 2.0
"""Timeout of a load where a stale entry can be served instead."""

Load = Callable[[Deadline], Any]
"""Gets the value from the source before the deadline. LookupUnavailable: the source is down."""


def jittered(seconds: float) -> float:
    """A random time between 75 % and 100 % of ``seconds``, so that entries loaded together do not expire together."""
    return seconds * random.uniform(0.75, 1.0)  # noqa: S311 (no secret, only spread)


class SingleFlight:
    """Stores loaded values in ``cache``; ``ttl_of`` gives the TTL of a value. Shared by all threads of a worker."""

    def __init__(self, cache: LocalCache, *, ttl_of: Callable[[Any], Ttl]) -> None:
        self.cache = cache
        self._ttl_of = ttl_of
        self._retry_at_s = float('-inf')

    def __call__(self, key: Hashable, load: Load, deadline: Deadline) -> Any:
        """The cached value of ``key``, else the one that ``load`` returns. Raises what ``load`` raises."""
        entry = self.cache.fresh(key)
        if entry is not None:
            return entry.value
        stale = self.cache.stale_ok(key)
        if stale is not None and self.source_is_down():
            return stale.value
        return self._once(key, lambda flight: self._load_or_serve_stale(flight, key, load, deadline), deadline)

    def refresh(self, key: Hashable, doubted: Any, load: Load, deadline: Deadline) -> Any:
        """Load ``key`` again because the cached value ``doubted`` may be wrong.

        Returns the cached value without a load where another request has replaced ``doubted`` meanwhile. Raises what
        ``load`` raises; the entry then stays as it is.
        """
        return self._once(key, lambda flight: self._reload(flight, key, doubted, load, deadline), deadline)

    def source_is_down(self) -> bool:
        """Whether the source was unavailable within the last ``RETRY_AFTER_FAILURE_S``."""
        return self.cache.clock() < self._retry_at_s

    def _once(self, key: Hashable, find: Callable[[Flight], Any], deadline: Deadline) -> Any:
        flight, leads = self.cache.join(key)
        if not leads:
            if not flight.wait(deadline.remaining_s()):
                raise LookupUnavailable('the deadline passed while another request was looking up the same')
            if flight.result is None:
                raise flight.error or LookupUnavailable('another request that was looking up the same was ended')
            return flight.result[0]
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
        return self._load_and_store(flight, key, load, deadline)

    def _load_or_serve_stale(self, flight: Flight, key: Hashable, load: Load, deadline: Deadline) -> Any:
        entry = self.cache.fetch(key, flight=flight)
        if entry is not None:
            return entry.value
        stale = self.cache.stale_ok(key)
        try:
            return self._load_and_store(
                flight, key, load, deadline if stale is None else _at_most(deadline, REFRESH_TIMEOUT_S)
            )
        except LookupUnavailable:
            if stale is None:
                raise
            self._retry_at_s = self.cache.clock() + jittered(RETRY_AFTER_FAILURE_S)
            return stale.value

    def _load_and_store(self, flight: Flight, key: Hashable, load: Load, deadline: Deadline) -> Any:
        began_s = self.cache.clock()
        value = load(deadline)
        self.cache.set(key, value, self._ttl_of(value), age_s=self.cache.clock() - began_s, flight=flight)
        return value


def _at_most(deadline: Deadline, timeout_s: float) -> Deadline:
    return Deadline(min(deadline.at_s, deadline.clock() + timeout_s), deadline.clock)
