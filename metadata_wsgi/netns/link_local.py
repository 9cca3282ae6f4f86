# SPDX-License-Identifier: Apache-2.0
"""fe80::a9fe:a9fe on the internal interfaces, and duplicate address detection (DAD) for it.

A link-local address belongs to one interface and must be unique on the network behind it. The kernel checks that
before it uses the address (RFC 4862: 1 to 2 s). So the address is added early (``begin``), other work is done
meanwhile, and the result is waited for last (``settle``).

DAD is not skipped (``nodad`` or an optimistic address): networks with two DHCP agents are usual, and each of them
offers this address (LP#1953165). Without DAD an instance would reach a different one of them from packet to packet.
The wait costs nothing: IPv4 is served meanwhile.

An interface without an address of its own gets none: it is that of the standby of an HA router. It has the same MAC as
that of the primary on another host, and every frame from it (duplicate address detection, MLD reports, neighbour
solicitations) makes the switches send the router's traffic to the wrong host (LP#1403860, LP#1859832).
keepalived adds the addresses when the router becomes the primary; then this one is added too, and removed when they
are gone. An interface whose only addresses are link-local is treated as a standby.

A duplicate is removed, because the kernel never checks it again, and its MAC is looked up. If that is another
interface of this same router (an IPv4 and an IPv6 subnet of one network have one each), its instances are served,
and nothing is wrong. Otherwise the address is tried again a few times, and then given up until the next attach, with
a message that names the other MAC. IPv4 does not depend on any of this.
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
"""For one check: up to 1 s of random delay and 1 s for each probe, of which there is one by default."""
DAD_POLL_S = 0.05


def begin(table: InterfaceTable, pattern: str) -> None:
    """Add the address to every interface that ``pattern`` matches, if none has it; does not wait.

    Where one has it already, ``settle`` adds the others: it first checks whether they are on the same network.
    Removes it from interfaces that have no address of their own any more.
    """
    for interface in standby_interfaces(table, pattern):
        if interface.ours:
            table.remove(interface)
    wanted = _wanted(table, pattern)
    if all(interface.state == MISSING for interface in wanted):
        for interface in wanted:
            table.add(interface)


def settle(
    table: InterfaceTable,
    pattern: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Wait until the address can be used on every interface; returns a message for each where it cannot.

    Does not wait for interfaces that are down: the kernel checks the address when they come up.
    """
    for attempts_left in reversed(range(DAD_ATTEMPTS)):
        duplicates = _attempt(table, pattern, clock, sleep)
        if not duplicates or not attempts_left:
            break
        sleep(DAD_RETRY_DELAY_S)
    unfinished = [f'{ADDRESS} on {found.name} is still tentative' for found in _tentative(table, pattern)]
    return [*(_duplicate_message(interface, mac) for interface, mac in duplicates.items()), *unfinished]


def remove(table: InterfaceTable) -> bool:
    """Remove the address wherever it is ours; whether it was."""
    ours = [interface for interface in table.interfaces() if interface.ours]
    for interface in ours:
        table.remove(interface)
    return bool(ours)


def missing_addresses(table: InterfaceTable, pattern: str) -> dict[Interface, str]:
    """The interfaces without a usable address, each with the MAC that has it on the network ('': none).

    An interface is not missing it where another one of the same namespace has it on the same network, where it is down,
    or where the address is still tentative.
    """
    without = [found for found in _wanted(table, pattern) if found.up and found.state in (MISSING, DUPLICATE)]
    return _held_by_others(table, {interface: table.neighbour_mac(interface) for interface in without})


def standby_interfaces(table: InterfaceTable, pattern: str) -> list[Interface]:
    """The interfaces that do not get the address, because they have none of their own."""
    return [found for found in _matching(table, pattern) if not found.has_own_address]


def usable_interfaces(table: InterfaceTable, pattern: str) -> list[Interface]:
    """The interfaces on which instances can use the address."""
    return [interface for interface in _wanted(table, pattern) if interface.state == USABLE]


def matches(pattern: str, name: str) -> bool:
    """Whether iptables' ``-i pattern`` matches the interface: ``+`` at the end matches any rest."""
    return name.startswith(pattern[:-1]) if pattern.endswith('+') else name == pattern


def _attempt(
    table: InterfaceTable, pattern: str, clock: Callable[[], float], sleep: Callable[[float], None]
) -> dict[Interface, str]:
    """Add the address where it is missing and wait for DAD; the interfaces where another MAC has it."""
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
    # Own MACs too: a distributed or HA router has the same interface, with the same MAC, on other hosts.
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
