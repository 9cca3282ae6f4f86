# SPDX-License-Identifier: Apache-2.0
"""Which kinds of iptables have any table in a namespace, asked from the kernel without running a program.

A new router's namespace has none, and then there is nothing to read: of the six programs that would be run for
it two are left. With a thousand routers at once these are most of the time.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces

LEGACY, NFT = 'legacy', 'nft'

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
NETLINK_NETFILTER = 12
GET_TABLES = 10 << 8 | 1
REQUEST_DUMP = 0x301
DONE = 3


def kinds(namespace: str) -> frozenset[str]:
    """LEGACY, NFT, both or none; both where it cannot be found out."""
    try:
        return namespaces.run_in(namespace, _kinds)
    except (NetnsError, OSError):
        return frozenset({LEGACY, NFT})


def _kinds() -> frozenset[str]:
    return frozenset(kind for kind, there in ((LEGACY, has_legacy()), (NFT, _has_nft())) if there)


def has_legacy() -> bool:
    """Whether iptables-legacy has a table in the namespace of the calling thread.

    Tables appear there when they are first used; no file means that the kernel's module is not even loaded.
    """
    names = [Path(f'/proc/thread-self/net/{prefix}_tables_names') for prefix in ('ip', 'ip6')]
    return any(name.read_text(encoding='ascii').strip() for name in names if os.path.exists(name))


def _has_nft() -> bool:
    """Asks for all tables of all families and looks at the first answer only: the end, if there are none."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asking:
        asking.settimeout(1.0)
        asking.send(struct.pack('=IHHII4x', 20, GET_TABLES, REQUEST_DUMP, 1, 0))
        (kind,) = struct.unpack_from('=H', asking.recv(65536), 4)
    return bool(kind != DONE)
