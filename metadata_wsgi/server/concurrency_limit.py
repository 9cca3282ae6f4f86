# SPDX-License-Identifier: Apache-2.0
"""How many requests of one guest are served at a time. Its others wait their turn; those of its neighbours do not wait
for them, and neither does Nova have all of them before theirs.
"""

from __future__ import annotations

from collections.abc import Hashable

from gevent.lock import Semaphore


class PerClientConcurrency:
    """At most ``each`` of each guest; ``enter`` and ``leave`` stand around what is served."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._places: dict[Hashable, Semaphore] = {}

    def __len__(self) -> int:
        """Of how many guests anything is being served."""
        return len(self._places)

    def enter(self, guest: Hashable, patience_s: float) -> bool:
        """Wait for a place, not longer than that; whether there was one."""
        places = self._places.get(guest)
        if places is None:
            places = self._places[guest] = Semaphore(self._each)
        return bool(places.acquire(timeout=patience_s))

    def leave(self, guest: Hashable) -> None:
        """Give it back; who waits longest has it next."""
        places = self._places[guest]
        places.release()
        if places.counter == self._each and not places.linkcount():
            del self._places[guest]
