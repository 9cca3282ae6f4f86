# SPDX-License-Identifier: Apache-2.0
"""Who may hold how many of a worker's connections, so that one guest cannot hold what another needs.

Three bounds, each counted for one namespace, because two tenants may have the same addresses:

- an address holds at most ``each``;
- the addresses of one /64 (what one guest can give itself over IPv6) hold at most twice that;
- all together hold at most ``total``.

At a bound the connection that has waited longest for its guest (to send, or to take an answer) is closed in
favour of the new one: of the same address, of the same /64, or in the namespace that holds most. A guest's own
request is there within milliseconds of its connection, so it is the half-sent and idle ones that go. Where none
waits, because all are being served, the new one is refused at the first two bounds, and waits its turn at the last.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
from collections import Counter
from collections.abc import Hashable
from typing import Protocol


class Closable(Protocol):
    """A connection; ``shutdown`` makes whoever waits on it notice."""

    def shutdown(self, how: int, /) -> object:
        """End it in both directions (2)."""


class ConnectionLimits:
    """The connections of one worker."""

    def __init__(self, *, each: int, total: int) -> None:
        self._each = each
        self._total = total
        self._held: Counter[Hashable] = Counter()
        # Insertion order is the order of waiting: whoever has spoken and waits again is put last.
        self._waiting: dict[Closable, tuple[Hashable, ...]] = {}

    def __len__(self) -> int:
        return self._held[()]

    def take(self, namespace: Hashable, address: str) -> tuple[Hashable, ...] | None:
        """Count a new connection in; returns what ``release`` and ``waits`` want, or None: it is refused."""
        one, several = (namespace, address), (namespace, _prefix(address))
        for group, most in ((one, self._each), (several, 2 * self._each)):
            if self._held[group] >= most and not self._close_one_of(group):
                return None
        if self._held[()] >= self._total:
            self._close_one_of(self._largest())
        keys = tuple(dict.fromkeys((one, several, (namespace,), ())))
        self._held.update(keys)
        return keys

    def release(self, keys: tuple[Hashable, ...]) -> None:
        """Count it out."""
        for key in keys:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    def waits(self, connection: Closable, keys: tuple[Hashable, ...]) -> None:
        """It is the guest's turn, from now on or still."""
        self._waiting.setdefault(connection, keys)

    def speaks(self, connection: Closable) -> None:
        """It is our turn, or it went away."""
        self._waiting.pop(connection, None)

    def _largest(self) -> tuple[Hashable, ...]:
        namespaces = Counter(keys[-2] for keys in self._waiting.values())
        return namespaces.most_common(1)[0][0] if namespaces else ()  # type: ignore[return-value]

    def _close_one_of(self, group: Hashable) -> bool:
        for connection, keys in self._waiting.items():
            if group in keys:
                del self._waiting[connection]
                with contextlib.suppress(OSError):  # it has gone by itself
                    connection.shutdown(2)
                return True
        return False


@functools.lru_cache(maxsize=4096)
def _prefix(address: str) -> str:
    """The /64 of an IPv6 address; an IPv4 one (v4-mapped too) is itself."""
    parsed = ipaddress.ip_address(address.partition('%')[0])
    if isinstance(parsed, ipaddress.IPv4Address) or parsed.ipv4_mapped:
        return address
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
