# SPDX-License-Identifier: Apache-2.0
"""The cache of one worker: a bounded dict of entries that expire, and the loads that are in flight.

Why a dict and not a library's region: every request looks a key up, and here that is one dict access and one
comparison. The cache is bounded in total weight (the oldest entry is evicted first) and in entries per owner, so
that the many requests of one instance evict its own entries and not those of other instances.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_ENTRIES_PER_OWNER = 64
"""A boot is 28 requests."""


@dataclass(frozen=True, slots=True)
class Ttl:
    """How long after the beginning of its load an entry is fresh, and how long it may be served stale. Seconds.

    ``stale_s`` counts from there too: with ``stale_s`` <= ``fresh_s`` the entry is never served stale.
    """

    fresh_s: float
    stale_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A cache entry. Times are moments of the cache's clock, in seconds."""

    value: Any
    loaded_at_s: float
    fresh_until_s: float
    stale_until_s: float
    weight: int = field(default=1, compare=False)
    owner: str | None = field(default=None, compare=False)


class Flight:
    """One load in flight. Other requests for the same key wait for it.

    ``result`` is a tuple with the loaded value, None as long as there is none; ``error`` is what the load raised.
    """

    def __init__(self) -> None:
        self._landed = threading.Event()
        self.result: tuple[Any] | None = None
        self.error: Exception | None = None

    def land(self) -> None:
        """Wake the requests that wait."""
        self._landed.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether the load ended within ``timeout_s``."""
        return self._landed.wait(timeout_s)


class Backend(Protocol):
    """A shared cache behind the local one: :class:`~metadata_wsgi.cache.shared.SharedCache`. Never raises."""

    def get(self, key: Hashable) -> tuple[Any, float, Ttl] | None:
        """(value, age in seconds, the TTL it was stored with), or None."""

    def set(self, key: Hashable, value: Any, ttl: Ttl, age_s: float) -> None:
        """Store a value whose load began ``age_s`` seconds ago."""

    def delete(self, key: Hashable) -> None:
        """Remove the entry."""


class LocalCache:
    """Entries with a total weight of at most ``limit``. Shared by all threads of a worker.

    ``weigh`` gives the weight of a value, ``owner_of`` the owner of a key (None: no owner); an owner has at most
    ``MAX_ENTRIES_PER_OWNER`` entries. ``fetch`` reads ``backend`` too, and every change is written to it.
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
        """The fresh entry, local or from the backend. An entry from the backend is stored here with its age.

        It is not stored if ``delete`` was called since ``flight`` began.
        """
        entry = self.fresh(key)
        if entry is not None or self._backend is None:
            return entry
        found = self._backend.get(key)
        if found is not None:
            value, age_s, ttl = found
            local = self._entries.get(key)
            # The local entry may be the newer one: the backend was unavailable when it was stored.
            if local is None or local.loaded_at_s < self.clock() - age_s:
                self._store(key, value, ttl, age_s, flight)
        return self.fresh(key)

    def set(self, key: Hashable, value: Any, ttl: Ttl, *, age_s: float = 0.0, flight: Flight | None = None) -> None:
        """Store ``value``, whose load began ``age_s`` seconds ago: it may have been true only then (RFC 9111, 4.2.3).

        Does nothing if ``delete`` was called since ``flight`` began.
        """
        if not self._store(key, value, ttl, age_s, flight) or self._backend is None:
            return
        self._backend.set(key, value, ttl, age_s)
        # A delete during this write may have reached the backend before it.
        if self._was_deleted(key, flight):
            self._backend.delete(key)

    def delete(self, key: Hashable) -> None:
        """Remove the entry. The result of a load that is in flight goes to its waiters and is not stored."""
        with self._lock:
            self._evict(key)
            self._flights.pop(key, None)
        if self._backend is not None:
            self._backend.delete(key)

    def join(self, key: Hashable) -> tuple[Flight, bool]:
        """The flight for ``key``, and whether the caller leads it: then it must load and call ``leave``."""
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

    def _was_deleted(self, key: Hashable, flight: Flight | None) -> bool:
        return flight is not None and self._flights.get(key) is not flight

    def _store(self, key: Hashable, value: Any, ttl: Ttl, age_s: float, flight: Flight | None) -> bool:
        """Store the entry locally; False if the key was deleted since ``flight`` began."""
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
