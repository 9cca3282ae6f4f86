# SPDX-License-Identifier: Apache-2.0
"""Sends the queries of concurrent lookups together: in a boot storm Neutron gets a few queries instead of thousands.

While fewer than ``MAX_IN_FLIGHT`` queries are in flight, a lookup sends its query at once. Otherwise it waits, and the
next query that is sent contains the keys of all waiting lookups, as many as fit into one URL. There is no timer: an
idle agent adds no delay. Each lookup waits at most until its own deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar
from urllib.parse import urlencode

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import LookupUnavailable
from metadata_wsgi.lookup.neutron.queries import Port

MAX_IN_FLIGHT = 4
"""Queries of one kind. More than one: a query that hangs must not delay all lookups until it times out."""

K = TypeVar('K', bound=Hashable)
Query = Callable[[Sequence[K], Deadline], Sequence[Port]]
"""Gets the ports for all keys. Raises LookupUnavailable or InstanceLookupError."""


class _Waiter(Generic[K]):
    """One lookup: its key, its deadline, and the result or the batch that it must send."""

    __slots__ = ('batch', 'deadline', 'error', 'key', 'ports', 'wake')

    def __init__(self, key: K, deadline: Deadline) -> None:
        self.key = key
        self.deadline = deadline
        self.batch: list[_Waiter[K]] = []
        self.ports: Sequence[Port] | None = None
        self.error: Exception | None = None
        self.wake = threading.Event()


class QueryBatcher(Generic[K]):
    """Calls ``query`` with the keys of lookups that wait at the same time. Shared by all threads of a worker.

    ``filters_of`` gives the filters of a key, as they are in the URL. Filters that several keys have in common are in
    the URL once. All filters of a batch have at most ``max_length`` characters there, but a batch always has at least
    one key.
    """

    def __init__(
        self,
        query: Query[K],
        *,
        filters_of: Callable[[K], Iterable[tuple[str, str]]],
        max_length: int,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._query = query
        self._filters_of = filters_of
        self._max_length = max_length
        self._free = max_in_flight
        self._waiting: list[_Waiter[K]] = []
        self._lock = threading.Lock()

    def ports(self, key: K, deadline: Deadline) -> Sequence[Port]:
        """Return the ports that match ``key``, and perhaps ports that match other keys: the caller must filter them.

        Raises what the query raises, LookupUnavailable when ``deadline`` passes first.
        """
        waiter = _Waiter(key, deadline)
        with self._lock:
            if self._free:
                self._free -= 1
                waiter.batch = [waiter]
            else:
                self._waiting.append(waiter)
        try:
            if not waiter.batch:
                waiter.wake.wait(deadline.remaining_s())
            if waiter.batch:
                self._send(waiter)
        finally:
            self._leave(waiter)
        if waiter.error is not None:
            raise waiter.error
        if waiter.ports is None:
            raise LookupUnavailable('the deadline passed before Neutron had answered earlier queries')
        return waiter.ports

    def _send(self, waiter: _Waiter[K]) -> None:
        """Send the batch of ``waiter``, and give each of its lookups the result."""
        batch = waiter.batch
        keys = list(dict.fromkeys(member.key for member in batch))
        ports: Sequence[Port] | None = None
        # Stays if this thread is ended: the other lookups of the batch then retry.
        error: Exception | None = LookupUnavailable('another request that sent the query was ended')
        try:
            ports = self._query(keys, waiter.deadline)
            error = None
        except Exception as raised:
            error = raised
        finally:
            for member in batch:
                member.ports, member.error = ports, error
                member.wake.set()

    def _leave(self, waiter: _Waiter[K]) -> None:
        """Stop waiting. If the lookup had a query in flight, or had to send one, the waiting lookups send the next."""
        with self._lock:
            if not waiter.batch:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                return
            # Not sent: the thread was ended after it had been chosen.
            self._waiting[:0] = [member for member in waiter.batch if member is not waiter and not member.wake.is_set()]
            batch = self._take_batch()
            if not batch:
                self._free += 1
                return
            # It has the longest time left: the query must not end before the deadlines of the others.
            sender = max(batch, key=lambda member: member.deadline.at_s)
            sender.batch = batch
            sender.wake.set()

    def _take_batch(self) -> list[_Waiter[K]]:
        """Remove the oldest waiting lookups, as many as fit into one query."""
        filters: set[tuple[str, str]] = set()
        length = count = 0
        for waiter in self._waiting:
            added = set(self._filters_of(waiter.key)) - filters
            length += sum(len(urlencode([one])) + 1 for one in added)
            if count and length > self._max_length:
                break
            filters |= added
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch
