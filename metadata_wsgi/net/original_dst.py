# SPDX-License-Identifier: Apache-2.0
"""Checks that a client connected to the metadata address, and not to another address of the proxy.

This check protects the proxy if a firewall rule is missing. Without the rule, clients could connect to the proxy's port
on the router's own address (LP#1187102). Such a client may be outside or on another network. Then its source address
does not identify an instance.

Facts: connection tracking in the socket's namespace stores the original destination (SO_ORIGINAL_DST). If there is no
entry, the connection was not redirected, and the original destination is the local address of the socket. This is the
case in a DHCP namespace, where the proxy listens on the metadata address itself. A connection over loopback is
accepted, because only an operator in the namespace can make it. A packet from outside cannot have a loopback source:
Linux drops it as martian (RFC 1122, 3.2.1.3).
"""

from __future__ import annotations

import socket
import struct
from typing import Any

METADATA_PORT = 80
METADATA_IPV4 = socket.inet_aton('169.254.169.254')
METADATA_IPV6 = socket.inet_pton(socket.AF_INET6, 'fe80::a9fe:a9fe')
SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>, and IP6T_SO_ORIGINAL_DST
_IPV4_MAPPED_PREFIX = bytes(10) + b'\xff\xff'


def targets_metadata_address(connection: Any, peer: str) -> bool:
    """Whether ``connection``, accepted from the address ``peer``, was made to the metadata address and port.

    Also True for a peer on the loopback interface of the namespace. Takes one system call for a redirected connection.
    Raises OSError if the peer has closed the connection.
    """
    if peer.startswith(('127.', '::ffff:127.')) or peer == '::1':
        return True
    destination = original_destination(connection, mapped=peer.startswith('::ffff:'))
    return destination in ((METADATA_IPV4, METADATA_PORT), (METADATA_IPV6, METADATA_PORT))


def original_destination(connection: Any, *, mapped: bool = False) -> tuple[bytes, int]:
    """The packed address and the port to which the peer connected.

    ``mapped``: the connection uses IPv4 on a dual-stack socket.
    """
    try:
        if connection.family == socket.AF_INET or mapped:
            port, address = struct.unpack_from('!2xH4s', connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
        else:
            sockaddr = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            port, address = struct.unpack_from('!2xH4x16s', sockaddr)
    except OSError:
        host, port = connection.getsockname()[:2]
        address = socket.inet_pton(socket.AF_INET6 if ':' in host else socket.AF_INET, host.partition('%')[0])
    return address.removeprefix(_IPV4_MAPPED_PREFIX) if len(address) == 16 else address, port
