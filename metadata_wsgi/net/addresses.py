# SPDX-License-Identifier: Apache-2.0
"""The canonical text of IP addresses, because Neutron compares IPv6 addresses as strings."""

from __future__ import annotations

import fcntl
import functools
import ipaddress
import re
import struct
from typing import Any

# An interface name. IFNAMSIZ is 16 with the terminating 0.
_ZONE = re.compile(r'[0-9A-Za-z._-]{1,15}\Z')

# netdevice(7): SIOCGIFNAME returns the name of the interface with an index. struct ifreq has the name, then the index.
_SIOCGIFNAME = 0x8910
_IFREQ = struct.Struct('16si20x')


@functools.lru_cache(maxsize=4096)
def normalize_ip(text: str) -> str:
    """The address ``text`` in lower case, compressed, without a zone. A v4-mapped address becomes an IPv4 address.

    A dual-stack socket, and Neutron's haproxy, return 10.1.1.2 as ``::ffff:10.1.1.2``. Raises ValueError if ``text`` is
    not an address.
    """
    bare, percent, zone = text.partition('%')
    parsed = ipaddress.ip_address(bare)
    if percent and (parsed.version == 4 or not _ZONE.match(zone)):
        raise ValueError(f'{zone!r} is not a zone')
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def is_link_local(address: str) -> bool:
    """Whether the canonical ``address`` is an IPv6 link-local address. Such an address is unique on its link only."""
    return address.startswith(('fe8', 'fe9', 'fea', 'feb')) and ':' in address


def interface_of(text: str) -> str | None:
    """The zone (interface name) of the address ``text``; None without a zone. Raises ValueError if it is invalid."""
    _, percent, zone = text.partition('%')
    if percent and not _ZONE.match(zone):
        raise ValueError(f'{zone!r} is not a zone')
    return zone if percent else None


def with_interface(descriptor: int, peer: tuple[Any, ...]) -> str:
    """The peer's address as text. The zone of a link-local address is the interface on which the connection arrived.

    ``descriptor`` is the descriptor of the connection. ``peer`` is the address that accept() returned, with the index
    of the interface. The kernel returns the interface's name in the namespace of the socket, not of the process. If the
    interface was deleted or has an unusual name, the zone is left out.
    """
    host, scope_id = str(peer[0]), peer[3] if len(peer) == 4 else 0
    if not scope_id:
        return host
    try:
        reply = fcntl.ioctl(descriptor, _SIOCGIFNAME, _IFREQ.pack(b'', scope_id))
    except OSError:
        return host
    interface = _IFREQ.unpack(reply)[0].rstrip(bytes(1)).decode('latin-1')
    return f'{host}%{interface}' if _ZONE.match(interface) else host
