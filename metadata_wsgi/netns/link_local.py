# SPDX-License-Identifier: Apache-2.0
"""Adds fe80::a9fe:a9fe to the internal interfaces, with duplicate address detection (DAD).

A link-local address belongs to one interface, and must be unique on the network of the interface. Before the kernel
uses the address, it looks for a duplicate for 1 to 2 s (RFC 4862). So ``begin`` adds the address early in an attach,
and ``settle`` waits for the result as the last step.

DAD is necessary, because networks often have two DHCP agents, and each agent offers this address (LP#1953165). Without
DAD (``nodad`` or an optimistic address) the packets of an instance would reach sometimes one agent and sometimes the
other. The wait delays no instance, because IPv4 is served meanwhile.

An interface without an address of its own belongs to the standby of an HA router. It does not get fe80::a9fe:a9fe,
because it has the same MAC as the interface of the primary on another host. Every frame from the standby (DAD, MLD
reports, neighbour solicitations) would make the switches send the router's traffic to the wrong host (LP#1403860,
LP#1859832). When the standby becomes the primary, keepalived adds the router's addresses. The next attach then adds
fe80::a9fe:a9fe. When keepalived has removed the router's addresses, the next attach removes fe80::a9fe:a9fe.
An interface with only link-local addresses is treated as a standby.

If DAD finds a duplicate, the address is removed, because the kernel never checks it again. Then the MAC of the other
owner is looked up. If the owner is another interface of the same router, nothing is wrong: a network with an IPv4 and
an IPv6 subnet has two such interfaces. Otherwise the address is added again, up to DAD_ATTEMPTS times in total. If it
is still a duplicate, a message names the other MAC, and the next attach tries again. IPv4 is not affected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from metadata_wsgi.netns.interface_state import (
    ADDRESS,
    DUPLICATE,
    MISSING,
    TENTATIVE,
    USABLE,
    Interface,
    InterfaceTable,
)

DAD_ATTEMPTS = 3
DAD_RETRY_DELAY_S = 2.0
DAD_TIMEOUT_S = 5.0
"""Timeout of one detection. The kernel waits up to 1 s (random), and 1 s for each probe (one by default)."""
DAD_POLL_S = 0.05


def begin(table: InterfaceTable, pattern: str) -> tuple[list[str], list[str]]:
    """If no interface has fe80::a9fe:a9fe yet, add it to every interface that ``pattern`` matches. Does not wait for
    DAD.

    If an interface already has the address, ``settle`` adds it to the other interfaces, unless they are on the same
    network. Removes the address from interfaces that have lost their own addresses. Returns the names of the interfaces
    to which the address was added, and of those from which it was removed.
    """
    standby = [interface for interface in standby_interfaces(table, pattern) if interface.ours]
    for interface in standby:
        table.remove(interface)
    wanted = _wanted(table, pattern)
    missing = wanted if all(interface.state == MISSING for interface in wanted) else []
    for interface in missing:
        table.add(interface)
    return [interface.name for interface in missing], [interface.name for interface in standby]


def settle(
    table: InterfaceTable,
    pattern: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Wait until fe80::a9fe:a9fe is usable on every interface. Returns a message for each interface where this fails.

    Does not wait for interfaces that are down, because the kernel checks the address when they come up.
    """
    for attempts_left in reversed(range(DAD_ATTEMPTS)):
        duplicates = _attempt(table, pattern, clock, sleep)
        if not duplicates or not attempts_left:
            break
        sleep(DAD_RETRY_DELAY_S)
    unfinished = [f'{ADDRESS} on {found.name} is still tentative' for found in _tentative(table, pattern)]
    return [*(_duplicate_message(interface, mac) for interface, mac in duplicates.items()), *unfinished]


def remove(table: InterfaceTable) -> bool:
    """Remove fe80::a9fe:a9fe from all interfaces to which this package added it. Returns whether there were any."""
    ours = [interface for interface in table.interfaces() if interface.ours]
    for interface in ours:
        table.remove(interface)
    return bool(ours)


def missing_addresses(table: InterfaceTable, pattern: str) -> dict[Interface, str]:
    """The interfaces without fe80::a9fe:a9fe, with the MAC that has this address on the interface's network, or ''.

    An interface is left out if it is down, if its address is still tentative, or if another interface of the namespace
    has the address on the same network.
    """
    without = [found for found in _wanted(table, pattern) if found.up and found.state in (MISSING, DUPLICATE)]
    return _held_by_others(table, {interface: table.neighbour_mac(interface) for interface in without})


def standby_interfaces(table: InterfaceTable, pattern: str) -> list[Interface]:
    """The interfaces that do not get fe80::a9fe:a9fe, because they have no address of their own."""
    return [found for found in _matching(table, pattern) if not found.has_own_address]


def names_with_address(table: InterfaceTable, pattern: str) -> list[str]:
    """The names of the interfaces that have the address, usable or not."""
    return [interface.name for interface in _matching(table, pattern) if interface.state != MISSING]


def usable_interfaces(table: InterfaceTable, pattern: str) -> list[Interface]:
    """The interfaces on which instances can use fe80::a9fe:a9fe."""
    return [interface for interface in _wanted(table, pattern) if interface.state == USABLE]


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` matches the interface ``name``, as in iptables: ``+`` at the end matches any characters."""
    return name.startswith(pattern[:-1]) if pattern.endswith('+') else name == pattern


def _attempt(
    table: InterfaceTable, pattern: str, clock: Callable[[], float], sleep: Callable[[float], None]
) -> dict[Interface, str]:
    """Add the missing addresses and wait for DAD. Returns the interfaces with a duplicate, and the owner's MAC."""
    held = {}
    _remove_duplicates(table, pattern)
    for interface in _wanted(table, pattern):
        if interface.state == MISSING:
            mac = table.neighbour_mac(interface) if interface.up else ''
            if mac:
                held[interface] = mac
            else:
                table.add(interface)
    deadline_s = clock() + DAD_TIMEOUT_S
    while _tentative(table, pattern) and clock() < deadline_s:
        sleep(DAD_POLL_S)
    held |= {interface: table.neighbour_mac(interface) for interface in _remove_duplicates(table, pattern)}
    return _held_by_others(table, held)


def _remove_duplicates(table: InterfaceTable, pattern: str) -> list[Interface]:
    duplicates = [interface for interface in _wanted(table, pattern) if interface.state == DUPLICATE]
    for interface in duplicates:
        if interface.ours:
            table.remove(interface)
    return duplicates


def _held_by_others(table: InterfaceTable, held: Mapping[Interface, str]) -> dict[Interface, str]:
    # MACs of this router are left out: a distributed or HA router has the same MACs on other hosts.
    own = {interface.mac for interface in table.interfaces()} - {''}
    return {interface: mac for interface, mac in held.items() if mac not in own}


def _matching(table: InterfaceTable, pattern: str) -> list[Interface]:
    return [found for found in table.interfaces() if found.has_ipv6 and matches(pattern, found.name)]


def _wanted(table: InterfaceTable, pattern: str) -> list[Interface]:
    return [found for found in _matching(table, pattern) if found.has_own_address]


def _tentative(table: InterfaceTable, pattern: str) -> Iterable[Interface]:
    return [found for found in _wanted(table, pattern) if found.up and found.state == TENTATIVE]


def _duplicate_message(interface: Interface, mac: str) -> str:
    owner = f'{mac} on its network has it' if mac else 'another host on its network has it'
    return (
        f'{ADDRESS} is not on {interface.name}, because {owner} (another DHCP agent of this network?); '
        'instances there are served over IPv4; attach again when the other one is gone'
    )
