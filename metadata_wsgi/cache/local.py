# SPDX-License-Identifier: Apache-2.0
"""The memory of one worker: a bounded dict of entries that end, and who is just finding out what.

Why a dict and not a library's region: the way through a hit is every request's way, and costs one look-up
and one comparison here. Bounded in weight, the oldest going first, and in entries of one owner, so that one
guest's many questions push out its own answers and not its neighbours'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_ENTRIES_PER_OWNER = 64
"""A boot is 28 questions."""


@dataclass(frozen=True, slots=True)
class Ttl:
    """For how long a value is taken for true, and for how long it is better than none. In seconds from now."""

    fresh_s: float
    usable_s: float


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry. The times are moments of the memory's clock."""

    value: Any
    since_s: float
    fresh_until_s: float
    usable_until_s: float
    weight: int = field(default=1, compare=False)
    owner: str | None = field(default=None, compare=False)


class Flight:
    """One question that is on its way. Whoever asks the same meanwhile waits for it."""

    def __init__(self) -> None:
        self._landed = threading.Event()
        self.outcome: tuple[Any] | None = None
        self.error: Exception | None = None

    def land(self) -> None:
        """Wake who waits."""
        self._landed.set()

    def wait(self, seconds: float) -> bool:
        """Whether it landed within ``seconds``."""
        return self._landed.wait(seconds)


class Backend(Protocol):
    """A memory behind this one; :class:`~metadata_wsgi.cache.shared.Shared` is the real one. Never raises."""

    def get(self, key: Hashable) -> tuple[Any, float, Ttl] | None:
        """(value, its age in seconds, the lives it had when it was new)."""

    def put(self, key: Hashable, value: Any, lives: Ttl) -> None:
        """Keep it."""

    def forget(self, key: Hashable) -> None:
        """Keep it no longer."""


class LocalCache:
    """Entries of at most ``limit`` in weight. Shared by all threads of a worker.

    ``weigh`` says what a value weighs, ``owner`` whose a key is; an owner has at most ``MAX_ENTRIES_PER_OWNER``.
    ``behind`` is asked by ``fetch`` and told of every change.
    """

    def __init__(
        self,
        *,
        limit: int,
        weigh: Callable[[Any], int] = lambda value: 1,
        owner: Callable[[Any], str | None] = lambda key: None,
        behind: Backend | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._limit = limit
        self._weigh = weigh
        self._owner = owner
        self._behind = behind
        self._kept: dict[Hashable, Kept] = {}
        self._owned: dict[str, dict[Hashable, None]] = {}
        self._weight = 0
        self._flights: dict[Hashable, Flight] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def fresh(self, key: Hashable) -> Kept | None:
        """The entry that may be taken for true."""
        kept = self._kept.get(key)
        return kept if kept is not None and self.clock() < kept.fresh_until_s else None

    def usable(self, key: Hashable) -> Kept | None:
        """The entry that is better than none."""
        kept = self._kept.get(key)
        return kept if kept is not None and self.clock() < kept.usable_until_s else None

    def fetch(self, key: Hashable) -> Kept | None:
        """The fresh entry; where there is none, that of the memory behind, which is then here too, of its own age."""
        found = self.fresh(key)
        if found is not None or self._behind is None:
            return found
        behind = self._behind.get(key)
        if behind is not None:
            value, age_s, lives = behind
            known = self._kept.get(key)
            # A worker's own entry may be the newer one: the memory behind was away when it was made.
            if known is None or known.since_s < self.clock() - age_s:
                self._store(key, value, lives, age_s)
        return self.fresh(key)

    def keep(self, key: Hashable, value: Any, lives: Ttl, *, flight: Flight | None = None) -> None:
        """Remember ``value`` from now on; not if ``flight`` was overtaken by ``forget``."""
        with self._lock:
            if flight is not None and self._flights.get(key) is not flight:
                return
        self._store(key, value, lives, 0.0)
        if self._behind is not None:
            self._behind.put(key, value, lives)

    def forget(self, key: Hashable) -> None:
        """As if it had never been known; who is just finding out does so for itself and those who wait."""
        with self._lock:
            self._drop(key)
            self._flights.pop(key, None)
        if self._behind is not None:
            self._behind.forget(key)

    def join(self, key: Hashable) -> tuple[Flight, bool]:
        """The flight for ``key``, and whether the caller leads it and must ``leave`` it."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def leave(self, key: Hashable, flight: Flight) -> None:
        """The flight is over, well or not."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.land()

    def _store(self, key: Hashable, value: Any, lives: Ttl, age_s: float) -> None:
        since_s = self.clock() - age_s
        weight, owner = self._weigh(value), self._owner(key)
        with self._lock:
            self._drop(key)
            if weight > self._limit:
                return
            self._kept[key] = Kept(value, since_s, since_s + lives.fresh_s, since_s + lives.usable_s, weight, owner)
            self._weight += weight
            if owner is not None:
                owned = self._owned.setdefault(owner, {})
                owned[key] = None
                if len(owned) > MAX_ENTRIES_PER_OWNER:
                    self._drop(next(iter(owned)))
            while self._weight > self._limit:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return
        self._weight -= kept.weight
        if kept.owner is not None:
            owned = self._owned[kept.owner]
            del owned[key]
            if not owned:
                del self._owned[kept.owner]
