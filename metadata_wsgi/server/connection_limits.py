# SPDX-License-Identifier: Apache-2.0
"""Limits the connections of each client in a worker, so that no client can take all connections.

There are three limits. Addresses are counted for each namespace, because two tenants may use the same addresses:

- An address has at most ``per_address`` connections.
- The global addresses of one IPv6 /64 together have at most ``2 * per_address`` connections, because one client can use
  every address of its /64. Each link-local address has its own limit, because fe80::/64 is on every network.
- All clients together have at most ``total`` connections.

If a new connection exceeds a limit, an idle connection of the same address or /64 is closed: the one that has been idle
longest. At ``total``, the longest idle connection of the namespace with the most idle connections is closed. A
connection is idle while the server waits until the client sends or receives. A client normally sends its request within
milliseconds after it has connected. So the closed connections are mostly those with a half-sent request, and keep-alive
connections.

If no connection is idle, a new connection is refused at the first two limits. At ``total`` it is accepted, and waits
for a greenlet.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
from collections import Counter
from collections.abc import Hashable
from typing import Protocol

from metadata_wsgi import instruments


class Closable(Protocol):
    """A connection. ``shutdown`` wakes the greenlet that waits for data of this connection."""

    def shutdown(self, how: int, /) -> object:
        """Shut down both directions (``how`` = 2)."""


class ConnectionLimits:
    """Counts and limits the connections of one worker. ``len()`` is their number."""

    def __init__(self, *, per_address: int, total: int) -> None:
        self._per_address = per_address
        self._total = total
        # Not a Counter: its methods are Python code, and every connection calls them.
        self._counts: dict[Hashable, int] = {}
        # Insertion order is the order in which the connections became idle.
        self._idle: dict[Closable, tuple[Hashable, ...]] = {}

    def __len__(self) -> int:
        return self._counts.get((), 0)

    def admit(self, namespace: Hashable, address: str) -> tuple[Hashable, ...] | None:
        """Count a new connection. Returns None if it is refused, else the groups in which it is counted.

        The groups are an argument of ``release`` and ``mark_idle``. The first group identifies the client: its address,
        or the /64 of a global IPv6 address.
        """
        counts = self._counts
        client, prefix = (namespace, address), (namespace, _prefix(address))
        if counts.get(client, 0) >= self._per_address and not self._close_longest_idle(client):
            return None
        if counts.get(prefix, 0) >= 2 * self._per_address and not self._close_longest_idle(prefix):
            return None
        if len(self) >= self._total:
            self._close_longest_idle(self._namespace_with_most_idle())
        groups = (client, (namespace,), ()) if prefix == client else (prefix, client, (namespace,), ())
        for group in groups:
            counts[group] = counts.get(group, 0) + 1
        return groups

    def release(self, groups: tuple[Hashable, ...]) -> None:
        """Stop counting a connection that ``admit`` counted in ``groups``."""
        for group in groups:
            left = self._counts[group] - 1
            if left:
                self._counts[group] = left
            else:
                del self._counts[group]

    def mark_idle(self, connection: Closable, groups: tuple[Hashable, ...]) -> None:
        """Call when the server starts to wait for the client. Further calls before ``mark_active`` have no effect."""
        self._idle.setdefault(connection, groups)

    def mark_active(self, connection: Closable) -> None:
        """Call when a request is in progress on the connection, or the connection is closed."""
        self._idle.pop(connection, None)

    def _namespace_with_most_idle(self) -> tuple[Hashable, ...]:
        namespaces = Counter(groups[-2] for groups in self._idle.values())
        return namespaces.most_common(1)[0][0] if namespaces else ()  # type: ignore[return-value]

    def _close_longest_idle(self, group: Hashable) -> bool:
        for connection, groups in self._idle.items():
            if group in groups:
                del self._idle[connection]
                instruments.REFUSED.add('idle_closed')
                with contextlib.suppress(OSError):  # the client closed it already
                    connection.shutdown(2)
                return True
        return False


@functools.lru_cache(maxsize=4096)
def _prefix(address: str) -> str:
    """The /64 of a global IPv6 address. Any other address (IPv4, IPv4-mapped, link-local) is returned unchanged."""
    parsed = ipaddress.ip_address(address.partition('%')[0])
    if isinstance(parsed, ipaddress.IPv4Address) or parsed.ipv4_mapped or parsed.is_link_local:
        return address
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
