# SPDX-License-Identifier: Apache-2.0
"""Canonical text of IP addresses: Quantum compares IPv6 addresses as strings."""

from __future__ import annotations

import functools
import ipaddress
import re

# An interface name (IFNAMSIZ is 16 with its NUL).
_ZONE = re.compile(r'[0-9A-Za-z._-]{1,15}\Z')


@functools.lru_cache(maxsize=4096)
def normalize_ip(text: str) -> str:
    """The address in lower case, compressed, without a zone; IPv4 for a v4-mapped one. ValueError for an invalid one.

    A dual-stack socket shows 10.1.1.2 as ``::ffff:10.1.1.2``, and so does Neutron's haproxy.
    """
    bare, percent, zone = text.partition('%')
    parsed = ipaddress.ip_address(bare)
    if percent and (parsed.version == 4 or not _ZONE.match(zone)):
        raise ValueError(f'{zone!r} is not a zone')
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)
