# SPDX-License-Identifier: Apache-2.0
"""Adds and removes 169.254.169.254 on the interface of a DHCP namespace, for a network without a router.

The prefix length is 16, as in Quantum's DHCP agent. With the address the kernel adds a route to 169.254.0.0/16. So
responses reach an instance that has only a link-local address.

IFA_PROTO (Linux 5.18) marks the address as ours. An address that the DHCP agent added has no IFA_PROTO, and this module
never removes it. An older kernel does not store IFA_PROTO, so there the address stays until its namespace is deleted.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import rtnetlink

ADDRESS = '169.254.169.254'
PREFIX_LENGTH = 16
ADDRESS_PROTO = 169
"""IFA_PROTO of the addresses that this package adds."""


def add(namespace: str, interface: str | None = None) -> bool:
    """Add 169.254.169.254 to ``interface`` (default: the only DHCP interface). False if an interface already has it.

    Raises NetnsError if the interface does not exist, or if ``interface`` is None and there are several interfaces.
    """
    from pyroute2 import NetlinkError

    with _netlink(namespace) as link:
        if _metadata_addresses(link):
            return False
        index = _interface_index(link, namespace, interface)
        try:
            link.addr('add', index=index, address=ADDRESS, prefixlen=PREFIX_LENGTH, proto=ADDRESS_PROTO)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise NetnsError(f'namespace {namespace}: {ADDRESS} cannot be added: {error}') from error
    return True


def remove(namespace: str) -> bool:
    """Remove 169.254.169.254 if this package added it. Returns whether it was removed."""
    removed = False
    with _netlink(namespace) as link:
        for message in _metadata_addresses(link):
            if message.get_attr('IFA_PROTO') == ADDRESS_PROTO:
                link.addr('del', index=message['index'], address=ADDRESS, prefixlen=message['prefixlen'])
                removed = True
    return removed


def interface_with_address(namespace: str) -> str | None:
    """The name of the interface with 169.254.169.254, even if another program added it; None if no interface has it."""
    with _netlink(namespace) as link:
        indexes = {message['index'] for message in _metadata_addresses(link)}
        names = [message.get_attr('IFLA_IFNAME') for message in link.get_links() if message['index'] in indexes]
    return str(names[0]) if names else None


@contextmanager
def _netlink(namespace: str) -> Iterator[Any]:
    """A netlink connection in the namespace. An error of the kernel is raised as NetnsError."""
    # Imported here: this import takes longer than the rest of most commands.
    from pyroute2 import NetlinkError

    try:
        with rtnetlink.connect(namespace) as link:
            yield link
    except (NetlinkError, OSError) as error:
        raise NetnsError(f'namespace {namespace}: {ADDRESS} cannot be managed: {error}') from error


def _metadata_addresses(link: Any) -> list[Any]:
    # IFA_LOCAL is the address itself. On a point-to-point link IFA_ADDRESS is the peer's address.
    return [message for message in link.get_addr(family=socket.AF_INET) if message.get_attr('IFA_LOCAL') == ADDRESS]


def _interface_index(link: Any, namespace: str, interface: str | None) -> int:
    indexes = {message.get_attr('IFLA_IFNAME'): message['index'] for message in link.get_links()}
    indexes.pop('lo', None)
    available = ', '.join(sorted(indexes)) or 'none'
    if interface:
        if interface not in indexes:
            raise NetnsError(f'namespace {namespace}: there is no interface {interface}; there are: {available}')
        return int(indexes[interface])
    # Quantum's interfaces have these names. With tunnel modules the kernel adds others to each namespace (tunl0, sit0).
    candidates = [name for name in indexes if name.startswith(('tap', 'ns-'))] or list(indexes)
    if len(candidates) != 1:
        raise NetnsError(
            f'namespace {namespace}: choose the interface for {ADDRESS} with --interface; there are: {available}'
        )
    return int(indexes[candidates[0]])
