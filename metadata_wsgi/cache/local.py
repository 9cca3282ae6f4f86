# SPDX-License-Identifier: Apache-2.0
"""The cache of one worker: a bounded dict of entries that expire, and the loads that are in flight.

The cache is a dict and not a library's cache, because every request looks a key up, and a dict is fastest. The total
weight is limited: if it is exceeded, the oldest entries are evicted. The number of entries of each owner is limited
too, so that many requests of one instance do not evict the entries of other instances.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_ENTRIES_PER_OWNER = 64
"""More than the 28 requests of a boot."""
MAX_DELETED_KEYS = 4096
"""Number of deletes that are remembered. The oldest one is forgotten first."""
CLOCK_DIFFERENCE_S = 2.0
"""Margin for the clocks of hosts that share a cache: twice the difference that ``shared`` allows."""


@dataclass(frozen=True, slots=True)
class Ttl:
    """The lifetime of an entry. Both times are in seconds, and count from the beginning of the entry's load.

    Until ``fresh_s`` the entry is fresh. Until ``stale_s`` it may be served stale. If ``stale_s`` is not greater than
    ``fresh_s``, the entry is never served stale.
    """

    fresh_s: float
    stale_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A cache entry. Times are readings of the cache's clock, in seconds."""

    value: Any
    loaded_at_s: float
    fresh_until_s: float
    stale_until_s: float
    weight: int = field(default=1, compare=False)
    owner: str | None = field(default=None, compare=False)


class Flight:
    """One load of a key that is in progress. Other requests for the same key wait until it ends.

    ``result`` is a tuple with the loaded value, None until the load succeeds. ``error`` is the exception of a failed
    load. ``too_short_until_s`` is the deadline of a load that had too little time to show whether the source is
    available, else None.
    """

    def __init__(self) -> None:
        self._landed = threading.Event()
        self.too_short_until_s: float | None = None
        self.result: tuple[Any] | None = None
        self.error: Exception | None = None

    def land(self) -> None:
        """Wake the requests that wait."""
        self._landed.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether the load ended within ``timeout_s``."""
        return self._landed.wait(timeout_s)


class Backend(Protocol):
    """A shared cache behind the local one. No method raises. SharedCache (``cache.shared``) implements it."""

    def get(self, key: Hashable) -> tuple[Any, float, Ttl] | None:
        """(value, age in seconds, TTL with which the value was stored), or None."""

    def set(self, key: Hashable, value: Any, ttl: Ttl, age_s: float) -> None:
        """Store a value whose load began ``age_s`` seconds ago."""

    def delete(self, key: Hashable) -> None:
        """Remove the entry."""


class LocalCache:
    """Entries with a total weight of at most ``limit``. Shared by all threads of a worker.

    ``weigh`` returns the weight of a value. ``owner_of`` returns the owner of a key, or None. An owner has at most
    ``MAX_ENTRIES_PER_OWNER`` entries. ``fetch`` also reads ``backend``; ``set`` and ``delete`` also change ``backend``.
    """

    def __init__(
        self,
        *,
        limit: int,
        weigh: Callable[[Any], int] = lambda value: 1,
        owner_of: Callable[[Any], str | None] = lambda key: None,
        backend: Backend | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._limit = limit
        self._weigh = weigh
        self._owner_of = owner_of
        self._backend = backend
        self._entries: dict[Hashable, Entry] = {}
        self._keys_of_owner: dict[str, dict[Hashable, None]] = {}
        self._weight = 0
        self._deleted_at_s: dict[Hashable, float] = {}
        self._flights: dict[Hashable, Flight] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def fresh(self, key: Hashable) -> Entry | None:
        """The local entry, if it is fresh."""
        entry = self._entries.get(key)
        return entry if entry is not None and self.clock() < entry.fresh_until_s else None

    def stale_ok(self, key: Hashable) -> Entry | None:
        """The local entry, if it may still be served stale."""
        entry = self._entries.get(key)
        return entry if entry is not None and self.clock() < entry.stale_until_s else None

    def fetch(self, key: Hashable, *, flight: Flight | None = None) -> Entry | None:
        """The fresh entry, local or from the backend; None if there is none.

        An entry of the backend is not used if ``delete`` was called for the key after ``flight`` began, or after the
        load of the entry began.
        """
        entry = self.fresh(key)
        if entry is not None or self._backend is None:
            return entry
        found = self._backend.get(key)
        if found is not None and not self._is_deleted(key, found[1]):
            value, age_s, ttl = found
            local = self._entries.get(key)
            # The local entry is newer if the backend was unavailable when the local entry was stored.
            if local is None or local.loaded_at_s < self.clock() - age_s:
                self._store(key, value, ttl, age_s, flight)
        return self.fresh(key)

    def set(self, key: Hashable, value: Any, ttl: Ttl, *, age_s: float = 0.0, flight: Flight | None = None) -> None:
        """Store ``value``. The TTL counts from the beginning of its load, ``age_s`` seconds ago (RFC 9111, 4.2.3).

        Does nothing if ``delete`` was called for the key since ``flight`` began.
        """
        if not self._store(key, value, ttl, age_s, flight) or self._backend is None:
            return
        self._backend.set(key, value, ttl, age_s)
        # If the key was deleted meanwhile, the backend may have executed the delete before the write.
        if self._was_deleted(key, flight):
            self._backend.delete(key)

    def delete(self, key: Hashable) -> None:
        """Remove the entry. If a load is in flight, the waiting requests get its result, but the result is not stored.

        The backend may still have the entry: if the backend is unavailable now, or if another worker stores a value
        whose load began before the delete. So this cache keeps the time of the delete, and uses no older entry of the
        backend.
        """
        with self._lock:
            if self._backend is not None:
                self._deleted_at_s.pop(key, None)
                self._deleted_at_s[key] = self.clock()
                if len(self._deleted_at_s) > MAX_DELETED_KEYS:
                    del self._deleted_at_s[next(iter(self._deleted_at_s))]
            self._evict(key)
            self._flights.pop(key, None)
        if self._backend is not None:
            self._backend.delete(key)

    def join(self, key: Hashable) -> tuple[Flight, bool]:
        """The flight for ``key``, and whether the caller started it. If so, the caller must load and call ``leave``."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def leave(self, key: Hashable, flight: Flight) -> None:
        """End the flight, whether or not the load succeeded."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.land()

    def _is_deleted(self, key: Hashable, age_s: float) -> bool:
        """Whether a backend entry's load began before ``key`` was deleted, or within CLOCK_DIFFERENCE_S after that."""
        deleted_at_s = self._deleted_at_s.get(key)
        return deleted_at_s is not None and self.clock() - age_s < deleted_at_s + CLOCK_DIFFERENCE_S

    def _was_deleted(self, key: Hashable, flight: Flight | None) -> bool:
        return flight is not None and self._flights.get(key) is not flight

    def _store(self, key: Hashable, value: Any, ttl: Ttl, age_s: float, flight: Flight | None) -> bool:
        """Store the entry locally. Returns False if the key was deleted since ``flight`` began."""
        loaded_at_s = self.clock() - age_s
        weight, owner = self._weigh(value), self._owner_of(key)
        with self._lock:
            if self._was_deleted(key, flight):
                return False
            self._evict(key)
            if weight > self._limit:
                return True
            self._entries[key] = Entry(
                value, loaded_at_s, loaded_at_s + ttl.fresh_s, loaded_at_s + ttl.stale_s, weight, owner
            )
            self._weight += weight
            if owner is not None:
                keys = self._keys_of_owner.setdefault(owner, {})
                keys[key] = None
                if len(keys) > MAX_ENTRIES_PER_OWNER:
                    self._evict(next(iter(keys)))
            while self._weight > self._limit:
                self._evict(next(iter(self._entries)))
            return True

    def _evict(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._weight -= entry.weight
        if entry.owner is not None:
            keys = self._keys_of_owner[entry.owner]
            del keys[key]
            if not keys:
                del self._keys_of_owner[entry.owner]
