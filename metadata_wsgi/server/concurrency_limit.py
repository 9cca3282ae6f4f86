# SPDX-License-Identifier: Apache-2.0
"""Limits how many requests of one client the pipeline processes at a time.

Further requests of the same client wait for a slot. Requests of other clients do not wait for them, so one client
cannot occupy Nova alone.
"""

from __future__ import annotations

from collections.abc import Hashable

from gevent.lock import Semaphore


class PerClientConcurrency:
    """At most ``limit`` requests of each client at a time; ``acquire`` before a request and ``release`` after it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._semaphores: dict[Hashable, Semaphore] = {}

    def __len__(self) -> int:
        """Number of clients with a request in progress."""
        return len(self._semaphores)

    def acquire(self, client: Hashable, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for a slot; returns whether there was one."""
        semaphore = self._semaphores.get(client)
        if semaphore is None:
            semaphore = self._semaphores[client] = Semaphore(self._limit)
        return bool(semaphore.acquire(timeout=timeout_s))

    def release(self, client: Hashable) -> None:
        """Free the slot for the next waiting request of the client."""
        semaphore = self._semaphores[client]
        semaphore.release()
        if semaphore.counter == self._limit and not semaphore.linkcount():
            del self._semaphores[client]
