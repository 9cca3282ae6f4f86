# SPDX-License-Identifier: Apache-2.0
"""Limits how many requests of one client the pipeline processes at a time.

Further requests of the same client wait for a slot, in the order of their arrival. Requests of other clients do not
wait for them, so a single client cannot use all of Nova's capacity.

gevent's ``Semaphore`` is not used because it is not fair: its ``acquire`` takes a free slot even if other greenlets
wait for one. A connection with pipelined requests would always get the slot before the waiting connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from gevent.event import Event


class PerClientConcurrency:
    """At most ``limit`` requests of each client at a time. Call ``acquire`` before a request, ``release`` after it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # By client, only of clients with a request in progress: the number of free slots, and the waiting requests.
        self._free: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[Event]] = {}

    def __len__(self) -> int:
        """Number of clients with a request in progress."""
        return len(self._free)

    def acquire(self, client: Hashable, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for a slot. Returns whether the request got a slot."""
        free = self._free.get(client, self._limit)
        if free:
            self._free[client] = free - 1
            return True
        got_slot = Event()
        self._waiting.setdefault(client, deque()).append(got_slot)
        try:
            got_slot.wait(timeout_s)
        except BaseException:  # another timeout, or the greenlet is killed
            if got_slot.is_set():
                self.release(client)
            else:
                self._stop_waiting(client, got_slot)
            raise
        if not got_slot.is_set():
            self._stop_waiting(client, got_slot)
        return got_slot.is_set()

    def release(self, client: Hashable) -> None:
        """Give the slot to the client's request that has waited longest. If none waits, free the slot."""
        waiting = self._waiting.get(client)
        if waiting:
            first = waiting[0]
            self._stop_waiting(client, first)
            first.set()
            return
        free = self._free[client] + 1
        if free == self._limit:
            del self._free[client]
        else:
            self._free[client] = free

    def _stop_waiting(self, client: Hashable, event: Event) -> None:
        waiting = self._waiting[client]
        waiting.remove(event)
        if not waiting:
            del self._waiting[client]
