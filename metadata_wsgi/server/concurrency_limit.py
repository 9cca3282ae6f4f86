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


class _Slots:
    def __init__(self, free: int) -> None:
        self.free = free
        self.waiting: deque[Event] = deque()


class PerClientConcurrency:
    """At most ``limit`` requests of each client at a time. Call ``acquire`` before a request, ``release`` after it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._slots: dict[Hashable, _Slots] = {}

    def __len__(self) -> int:
        """Number of clients with a request in progress."""
        return len(self._slots)

    def acquire(self, client: Hashable, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` seconds for a slot. Returns whether the request got a slot."""
        slots = self._slots.get(client)
        if slots is None:
            slots = self._slots[client] = _Slots(self._limit)
        if slots.free:
            slots.free -= 1
            return True
        got_slot = Event()
        slots.waiting.append(got_slot)
        try:
            got_slot.wait(timeout_s)
        except BaseException:  # another timeout, or the greenlet is killed
            if got_slot.is_set():
                self.release(client)
            else:
                slots.waiting.remove(got_slot)
            raise
        if not got_slot.is_set():
            slots.waiting.remove(got_slot)
        return got_slot.is_set()

    def release(self, client: Hashable) -> None:
        """Give the slot to the client's request that has waited longest, or free it."""
        slots = self._slots[client]
        if slots.waiting:
            slots.waiting.popleft().set()
            return
        slots.free += 1
        if slots.free == self._limit:
            del self._slots[client]
