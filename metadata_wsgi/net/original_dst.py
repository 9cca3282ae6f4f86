# SPDX-License-Identifier: Apache-2.0
"""Which address a guest asked, before a rule redirected its connection: the last check when a rule is missing.

Only who asked for the metadata address is served. One who asked the router's own address on the proxy's
port came past the rules (LP#1187102): from the outside, or from a network that is not the router's, and its
address says nothing.

Facts: the kernel's connection tracking remembers the address (SO_ORIGINAL_DST, of the socket's namespace); where
it has no entry the connection was not redirected, and the socket's own address is the one that was asked, as in a
DHCP namespace, where the proxy is at the metadata address itself. A connection over loopback is an operator's: no
packet from outside may have such a source (RFC 1122, 3.2.1.3; Linux drops it as martian).
"""

from __future__ import annotations

import socket
import struct
from typing import Any

PORT = 80
SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>, and IP6T_SO_ORIGINAL_DST
IPV4 = socket.inet_aton('169.254.169.254')
IPV6 = socket.inet_pton(socket.AF_INET6, 'fe80::a9fe:a9fe')
_MAPPED = bytes(10) + b'\xff\xff'


def targets_metadata_address(connection: Any, peer: str) -> bool:
    """Whether ``connection``, accepted from the address ``peer``, was made to the metadata address.

    Also true for a peer on this host's loopback. One system call for a redirected connection.
    """
    if peer.startswith(('127.', '::ffff:127.')) or peer == '::1':
        return True
    return original_destination(connection, mapped=peer.startswith('::ffff:')) in ((IPV4, PORT), (IPV6, PORT))


def original_destination(connection: Any, *, mapped: bool = False) -> tuple[bytes, int]:
    """Packed address and port that the peer connected to; ``mapped``: IPv4 on a socket of both families."""
    try:
        if connection.family == socket.AF_INET or mapped:
            port, address = struct.unpack_from('!2xH4s', connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
        else:
            found = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            port, address = struct.unpack_from('!2xH4x16s', found)
    except OSError:
        host, port = connection.getsockname()[:2]
        address = socket.inet_pton(socket.AF_INET6 if ':' in host else socket.AF_INET, host.partition('%')[0])
    return address.removeprefix(_MAPPED) if len(address) == 16 else address, port
