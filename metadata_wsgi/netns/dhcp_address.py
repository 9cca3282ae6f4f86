# SPDX-License-Identifier: Apache-2.0
"""169.254.169.254 on the interface of a DHCP namespace, for a network that has no router.

The prefix is /16, as Quantum's DHCP agent sets it: with the address comes the route to 169.254.0.0/16,
so that a guest that has only a link-local address of its own hears its answer.

How do we know on removal that the address is ours? It carries our number as its origin (``IFA_PROTO``, Linux
5.18). An address of the DHCP agent has none and stays. An older kernel keeps no origin; there the address
stays too, and goes with its namespace.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from pyroute2 import NetlinkError, NetNS

from metadata_wsgi.errors import NetnsError

ADDRESS = '169.254.169.254'
PREFIX_LENGTH = 16
ORIGIN = 169


def add(namespace: str, interface: str | None = None) -> bool:
    """Put the address on ``interface``, or on the only one there is; False if some interface has it already.

    Raises NetnsError when there are several interfaces to choose from, or none.
    """
    with _netlink(namespace) as link:
        if _found(link):
            return False
        index = _index(link, namespace, interface)
        try:
            link.addr('add', index=index, address=ADDRESS, prefixlen=PREFIX_LENGTH, proto=ORIGIN)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise NetnsError(f'namespace {namespace}: {ADDRESS} cannot be added: {error}') from error
    return True


def remove(namespace: str) -> bool:
    """Remove the address where it is ours; whether it was."""
    removed = False
    with _netlink(namespace) as link:
        for message in _found(link):
            if message.get_attr('IFA_PROTO') == ORIGIN:
                link.addr('del', index=message['index'], address=ADDRESS, prefixlen=message['prefixlen'])
                removed = True
    return removed


def where(namespace: str) -> str | None:
    """The name of the interface that has the address, whoever put it there; None if none has."""
    with _netlink(namespace) as link:
        having = {found['index'] for found in _found(link)}
        names = [link_.get_attr('IFLA_IFNAME') for link_ in link.get_links() if link_['index'] in having]
    return str(names[0]) if names else None


def _netlink(namespace: str) -> Any:
    try:
        return NetNS(namespace, flags=0)
    except OSError as error:
        raise NetnsError(f'namespace {namespace}: cannot be entered: {error}') from error


def _found(link: Any) -> list[Any]:
    # IFA_LOCAL: the address itself; IFA_ADDRESS is the peer's on a point-to-point link.
    return [found for found in link.get_addr(family=socket.AF_INET) if found.get_attr('IFA_LOCAL') == ADDRESS]


def _index(link: Any, namespace: str, interface: str | None) -> int:
    indexes = {found.get_attr('IFLA_IFNAME'): found['index'] for found in link.get_links()}
    indexes.pop('lo', None)
    there = ', '.join(sorted(indexes)) or 'none'
    if interface:
        if interface not in indexes:
            raise NetnsError(f'namespace {namespace}: there is no interface {interface}; there are: {there}')
        return int(indexes[interface])
    # A kernel with tunnel modules loaded puts tunl0, sit0 and the like into every namespace; Quantum's are these.
    named = [name for name in indexes if name.startswith(('tap', 'ns-'))] or list(indexes)
    if len(named) != 1:
        raise NetnsError(f'namespace {namespace}: say which interface gets {ADDRESS}; there are: {there}')
    return int(indexes[named[0]])
