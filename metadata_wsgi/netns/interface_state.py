# SPDX-License-Identifier: Apache-2.0
"""Reads the interfaces of a namespace from the kernel, and adds and removes fe80::a9fe:a9fe on them.

Facts:

- The address is added with the prefix length 128. With a shorter prefix the kernel would add a second route to
  fe80::/64. When the address is removed, the kernel could remove the interface's own route instead of the second one.
- The address is deprecated from the start (``preferred_lft 0``), so the kernel does not choose it as a source address.
  Otherwise the router would send its router advertisements from its newest address, which is fe80::a9fe:a9fe.
  Instances would use this address as their default gateway, and lose the gateway at detach.
- The address has our IFA_PROTO, like the IPv4 address (``dhcp_address``).
- During duplicate address detection (DAD) an address is tentative: it cannot be used. If DAD finds a duplicate,
  the address stays with the flag dadfailed, and the kernel never checks it again (RFC 4862, 5.4). So ``link_local``
  removes the address and adds it again.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, rtnetlink
from metadata_wsgi.netns.dhcp_address import ADDRESS_PROTO

ADDRESS = 'fe80::a9fe:a9fe'
PREFIX_LENGTH = 128
FOREVER = 0xFFFFFFFF
DISCARD_PORT = 9
CONNECT_TIMEOUT_S = 0.3
NEIGHBOUR_TIMEOUT_S = 0.3

MISSING, TENTATIVE, USABLE, DUPLICATE = 'missing', 'tentative', 'usable', 'duplicate'

# <linux/if_addr.h>, <linux/if.h>, <linux/rtnetlink.h>
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
RT_SCOPE_UNIVERSE = 0


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. ``state`` is the state of fe80::a9fe:a9fe on it: MISSING, TENTATIVE, USABLE or DUPLICATE.

    ``ours``: fe80::a9fe:a9fe exists and has our IFA_PROTO. ``up``: packets can pass, so DAD can finish. ``has_ipv6``:
    IPv6 is enabled on the interface. ``has_own_address``: it has an address that is not link-local.
    """

    index: int
    name: str
    mac: str = ''
    up: bool = True
    has_ipv6: bool = True
    state: str = MISSING
    ours: bool = False
    has_own_address: bool = True


class InterfaceTable(Protocol):
    """The interfaces of one namespace. :func:`open_table` makes the object. Every method may raise NetnsError."""

    def interfaces(self) -> list[Interface]:
        """All interfaces except the loopback, sorted by index."""

    def add(self, interface: Interface) -> None:
        """Add fe80::a9fe:a9fe to ``interface``. Duplicate address detection begins as soon as the interface is up."""

    def remove(self, interface: Interface) -> None:
        """Remove fe80::a9fe:a9fe from ``interface``."""

    def neighbour_mac(self, interface: Interface) -> str:
        """The MAC of the host that has fe80::a9fe:a9fe on the interface's network; '' if there is none."""

    def refuses_connection(self, interface: Interface, port: int) -> bool:
        """Whether a connection to port ``port`` of fe80::a9fe:a9fe from inside the namespace is refused."""


def names(namespace: str) -> list[str]:
    """The names of the namespace's interfaces. This is much faster than ``open_table``."""
    return [name for _, name in namespaces.run_in(namespace, socket.if_nameindex)]


@contextmanager
def open_table(namespace: str) -> Iterator[InterfaceTable]:
    """The interface table of ``namespace``. Raises NetnsError if the namespace cannot be entered."""
    # Imported here: this import takes longer than the rest of most commands.
    from pyroute2 import NetlinkError

    with rtnetlink.connect(namespace) as link:
        try:
            yield _KernelInterfaceTable(namespace, link, NetlinkError)
        except (NetlinkError, OSError) as error:
            raise NetnsError(f'namespace {namespace}: {ADDRESS} cannot be managed: {error}') from error


class _KernelInterfaceTable:
    def __init__(self, namespace: str, link: Any, netlink_error: type[Exception]) -> None:
        self._namespace = namespace
        self._netlink_error = netlink_error
        self._link = link

    def interfaces(self) -> list[Interface]:
        messages = [*self._link.get_addr()]
        addresses = {message['index']: message for message in messages if message.get_attr('IFA_ADDRESS') == ADDRESS}
        with_own_address = {message['index'] for message in messages if message['scope'] == RT_SCOPE_UNIVERSE}
        return sorted(
            (
                _interface(message, addresses.get(message['index']), message['index'] in with_own_address)
                for message in self._link.get_links()
                if not message['flags'] & IFF_LOOPBACK
            ),
            key=lambda interface: interface.index,
        )

    def add(self, interface: Interface) -> None:
        try:
            self._link.addr(
                'add',
                family=socket.AF_INET6,
                index=interface.index,
                address=ADDRESS,
                prefixlen=PREFIX_LENGTH,
                proto=ADDRESS_PROTO,
                preferred_lft=0,
                valid_lft=FOREVER,
            )
        except self._netlink_error as error:
            if getattr(error, 'code', None) != errno.EEXIST:
                raise self._error('added to', interface, error) from error

    def remove(self, interface: Interface) -> None:
        try:
            self._link.addr(
                'del', family=socket.AF_INET6, index=interface.index, address=ADDRESS, prefixlen=PREFIX_LENGTH
            )
        except self._netlink_error as error:
            if getattr(error, 'code', None) not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise self._error('removed from', interface, error) from error

    def neighbour_mac(self, interface: Interface, *, timeout_s: float = NEIGHBOUR_TIMEOUT_S) -> str:
        # A packet to an unused port makes the kernel send a neighbour solicitation, if no cache entry exists.
        self._delete_neighbour(interface)
        try:
            namespaces.run_in(self._namespace, lambda: _send_empty_datagram(interface.index))
        except OSError:
            return ''
        deadline_s = time.monotonic() + timeout_s
        while True:
            # The clock is read first: on a busy host this thread may wait for longer than the timeout.
            is_last = time.monotonic() >= deadline_s
            mac = self._cached_neighbour(interface)
            if mac or is_last:
                break
            time.sleep(0.01)
        self._delete_neighbour(interface)
        return mac

    def refuses_connection(self, interface: Interface, port: int) -> bool:
        try:
            namespaces.run_in(self._namespace, lambda: _connect(interface.index, port))
        except ConnectionRefusedError:
            return True
        except OSError:
            # Unknown, so not reported: if the loopback of a namespace is down, no connection inside it is possible.
            return False
        return False

    def _cached_neighbour(self, interface: Interface) -> str:
        for message in self._link.get_neighbours(family=socket.AF_INET6, ifindex=interface.index):
            if message['ifindex'] == interface.index and message.get_attr('NDA_DST') == ADDRESS:
                return str(message.get_attr('NDA_LLADDR') or '')
        return ''

    def _delete_neighbour(self, interface: Interface) -> None:
        try:
            self._link.neigh('del', family=socket.AF_INET6, dst=ADDRESS, ifindex=interface.index)
        except self._netlink_error as error:
            if getattr(error, 'code', None) not in (errno.ENOENT, errno.ENODEV):
                raise self._error('looked up on', interface, error) from error

    def _error(self, operation: str, interface: Interface, error: Exception) -> NetnsError:
        return NetnsError(f'namespace {self._namespace}: {ADDRESS} cannot be {operation} {interface.name}: {error}')


def _interface(link: Any, address: Any, has_own_address: bool) -> Interface:
    return Interface(
        index=link['index'],
        name=link.get_attr('IFLA_IFNAME'),
        mac=link.get_attr('IFLA_ADDRESS') or '',
        up=link['flags'] & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
        has_ipv6=_has_ipv6(link),
        state=_address_state(address.get_attr('IFA_FLAGS')) if address else MISSING,
        ours=bool(address) and address.get_attr('IFA_PROTO') == ADDRESS_PROTO,
        has_own_address=has_own_address,
    )


def _address_state(flags: int) -> str:
    if flags & IFA_F_DADFAILED:
        return DUPLICATE
    return TENTATIVE if flags & IFA_F_TENTATIVE else USABLE


def _has_ipv6(link: Any) -> bool:
    """Whether IPv6 is enabled on ``link``: not if ``disable_ipv6`` is set or the MTU is below 1280."""
    families = link.get_attr('IFLA_AF_SPEC')
    ipv6 = families.get_attr('AF_INET6') if families else None
    settings = ipv6.get_attr('IFLA_INET6_CONF') if ipv6 else None
    return settings is not None and not settings['disable_ipv6']


def _connect(index: int, port: int) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        probe.connect((ADDRESS, port, 0, index))


def _send_empty_datagram(index: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(b'', (ADDRESS, DISCARD_PORT, 0, index))
