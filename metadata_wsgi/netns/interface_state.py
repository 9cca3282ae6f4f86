# SPDX-License-Identifier: Apache-2.0
"""The interfaces of a namespace and fe80::a9fe:a9fe on them, as the kernel has it now.

Facts:

- The address goes on as /128: with a shorter prefix comes a second route to fe80::/64 beside the interface's
  own, and with the removal of the one the question whose the other is.
- It is deprecated from the start (``preferred_lft 0``), which means only that nobody chooses it as a
  source by himself. Otherwise, being the newest, it would become what the router's own packets come from, and
  a guest whose default route is the sender of a router advertisement would lose it at detach.
- It carries our number as its origin, as the IPv4 address does (``address``).
- An address that is being checked for duplicates is tentative: nobody is answered under it. One that was
  found to be a duplicate stays, dadfailed, and is never checked again (RFC 4862, 5.4).
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pyroute2 import NetlinkError, NetNS

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces
from metadata_wsgi.netns.dhcp_address import ORIGIN

ADDRESS = 'fe80::a9fe:a9fe'
PREFIX_LENGTH = 128
FOREVER = 0xFFFFFFFF
DISCARD_PORT = 9

MISSING, CHECKING, USABLE, DUPLICATE = 'missing', 'checking', 'usable', 'duplicate'

# <linux/if_addr.h>, <linux/if.h>
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. ``state`` is MISSING, CHECKING, USABLE or DUPLICATE; ``ours``: the address there is.

    ``up`` means that packets can come and go, so that a check can end; ``has_ipv6`` that IPv6 is not switched off.
    """

    index: int
    name: str
    mac: str = ''
    up: bool = True
    has_ipv6: bool = True
    state: str = MISSING
    ours: bool = False


class Links(Protocol):
    """The interfaces of one namespace; :func:`opened` gives the real ones. Everything may raise NetnsError."""

    def interfaces(self) -> list[Interface]:
        """All but the loopback, by index."""

    def add(self, interface: Interface) -> None:
        """Put the address on it; its check begins as soon as it is up."""

    def remove(self, interface: Interface) -> None:
        """Take the address off it."""

    def holder(self, interface: Interface) -> str:
        """The MAC of who answers for the address on the network behind it; '' if nobody does."""

    def refuses(self, interface: Interface, port: int) -> bool:
        """Whether nobody listens on the address there, asked from inside."""


def names(namespace: str) -> list[str]:
    """The names of its interfaces: much cheaper than ``opened``, where that is all one needs to know."""
    return [name for _, name in namespaces.run_in(namespace, socket.if_nameindex)]


@contextmanager
def opened(namespace: str) -> Iterator[Links]:
    """The interfaces of ``namespace``. Raises NetnsError if it cannot be entered."""
    try:
        link = NetNS(namespace, flags=0)
    except OSError as error:
        raise NetnsError(f'namespace {namespace}: cannot be entered: {error}') from error
    with link:
        try:
            yield _KernelLinks(namespace, link)
        except (NetlinkError, OSError) as error:
            raise NetnsError(f'namespace {namespace}: {ADDRESS} cannot be looked after: {error}') from error


class _KernelLinks:
    def __init__(self, namespace: str, link: Any) -> None:
        self._namespace = namespace
        self._link = link

    def interfaces(self) -> list[Interface]:
        there = {
            found['index']: found
            for found in self._link.get_addr(family=socket.AF_INET6)
            if found.get_attr('IFA_ADDRESS') == ADDRESS
        }
        return sorted(
            (
                _interface(found, there.get(found['index']))
                for found in self._link.get_links()
                if not found['flags'] & IFF_LOOPBACK
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
                proto=ORIGIN,
                preferred_lft=0,
                valid_lft=FOREVER,
            )
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise self._refused('added to', interface, error) from error

    def remove(self, interface: Interface) -> None:
        try:
            self._link.addr(
                'del', family=socket.AF_INET6, index=interface.index, address=ADDRESS, prefixlen=PREFIX_LENGTH
            )
        except NetlinkError as error:
            if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise self._refused('removed from', interface, error) from error

    def holder(self, interface: Interface, *, within_s: float = 0.3) -> str:
        # A packet to nobody's port makes the kernel ask (neighbour solicitation). What it knew before may be stale.
        self._forget(interface)
        try:
            namespaces.run_in(self._namespace, lambda: _send_nothing(interface.index))
        except OSError:
            return ''
        give_up_at = time.monotonic() + within_s
        while not (mac := self._neighbour(interface)) and time.monotonic() < give_up_at:
            time.sleep(0.01)
        self._forget(interface)
        return mac

    def refuses(self, interface: Interface, port: int) -> bool:
        try:
            namespaces.run_in(self._namespace, lambda: _connect(interface.index, port))
        except ConnectionRefusedError:
            return True
        except OSError:
            # Nothing is known then: a namespace whose loopback is down cannot reach itself.
            return False
        return False

    def _neighbour(self, interface: Interface) -> str:
        for found in self._link.get_neighbours(family=socket.AF_INET6, ifindex=interface.index):
            if found['ifindex'] == interface.index and found.get_attr('NDA_DST') == ADDRESS:
                return str(found.get_attr('NDA_LLADDR') or '')
        return ''

    def _forget(self, interface: Interface) -> None:
        try:
            self._link.neigh('del', family=socket.AF_INET6, dst=ADDRESS, ifindex=interface.index)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.ENODEV):
                raise self._refused('looked for on', interface, error) from error

    def _refused(self, what: str, interface: Interface, error: Exception) -> NetnsError:
        return NetnsError(f'namespace {self._namespace}: {ADDRESS} cannot be {what} {interface.name}: {error}')


def _interface(link: Any, address: Any) -> Interface:
    return Interface(
        index=link['index'],
        name=link.get_attr('IFLA_IFNAME'),
        mac=link.get_attr('IFLA_ADDRESS') or '',
        up=link['flags'] & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
        has_ipv6=_has_ipv6(link),
        state=_state(address.get_attr('IFA_FLAGS')) if address else MISSING,
        ours=bool(address) and address.get_attr('IFA_PROTO') == ORIGIN,
    )


def _state(flags: int) -> str:
    if flags & IFA_F_DADFAILED:
        return DUPLICATE
    return CHECKING if flags & IFA_F_TENTATIVE else USABLE


def _has_ipv6(link: Any) -> bool:
    """Not where ``disable_ipv6`` is set, and not where the kernel has no IPv6 for it (its MTU is below 1280)."""
    families = link.get_attr('IFLA_AF_SPEC')
    ipv6 = families.get_attr('AF_INET6') if families else None
    settings = ipv6.get_attr('IFLA_INET6_CONF') if ipv6 else None
    return settings is not None and not settings['disable_ipv6']


def _connect(index: int, port: int) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.settimeout(0.3)
        probe.connect((ADDRESS, port, 0, index))


def _send_nothing(index: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(b'', (ADDRESS, DISCARD_PORT, 0, index))
