# SPDX-License-Identifier: Apache-2.0
"""Sends the queries of concurrent lookups together. So if many instances boot at once, Neutron gets only a few queries.

While fewer than ``MAX_IN_FLIGHT`` queries are in flight, a lookup sends its query at once. Otherwise it waits until a
query has ended. The next query contains the keys of the waiting lookups, as many as fit into one URL. No lookup waits
for others to join, so without load there is no delay. Each lookup waits at most until its own deadline.
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
"""Largest number of queries of one kind in flight. If the limit were 1, a slow query would delay all lookups."""

K = TypeVar('K', bound=Hashable)
Query = Callable[[Sequence[K], Deadline], Sequence[Port]]
"""Gets the ports for all keys. Raises LookupUnavailable or InstanceLookupError."""


class _Waiter(Generic[K]):
    """One lookup: its key, its deadline, and its result. ``batch``: the lookups whose query this lookup must send."""

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

    ``filters_of`` returns the filters of a key for the URL. A filter that several keys have is in the URL only once.
    All filters of a batch together have at most ``max_length`` characters, or belong to a single key.
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
        """Return the ports that match ``key``. The result may contain ports of other keys; the caller filters it.

        Raises the exception of the query, or LookupUnavailable if ``deadline`` passes first.
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
            raise LookupUnavailable('the deadline passed while earlier queries waited for Neutron')
        return waiter.ports

    def _send(self, waiter: _Waiter[K]) -> None:
        """Send the batch of ``waiter`` and store the result in each lookup of the batch."""
        batch = waiter.batch
        keys = list(dict.fromkeys(member.key for member in batch))
        ports: Sequence[Port] | None = None
        # This error remains if the thread is aborted. Then the other lookups of the batch retry.
        error: Exception | None = LookupUnavailable('another request that sent the query was aborted')
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
        """End the lookup. If it has sent a query, select a waiting lookup, which sends the next query."""
        with self._lock:
            if not waiter.batch:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                return
            # If this thread was aborted after it had been selected, its batch is not sent yet.
            self._waiting[:0] = [member for member in waiter.batch if member is not waiter and not member.wake.is_set()]
            batch = self._take_batch()
            if not batch:
                self._free += 1
                return
            # The lookup with the latest deadline sends, because the query ends at the deadline of its sender.
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
