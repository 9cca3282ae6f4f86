# SPDX-License-Identifier: Apache-2.0
"""fe80::a9fe:a9fe on the interfaces towards guests, and what to do where somebody else has it.

A link-local address belongs to one interface and must be there once on the network behind it; the
kernel checks that before it uses it (duplicate address detection, RFC 4862: 1 to 2 s). So the address is
given out early (``begin``), other work is done meanwhile, and the outcome is waited for last (``settle``).

Why not skip the wait, by ``nodad`` or an optimistic address? Networks with two DHCP agents are usual, and each of
them offers this address (LP#1953165): unchecked, a guest would reach now this one, now that one, in the
midst of a connection. And nobody waits for the second that is gained: IPv4 answers already.

A duplicate is taken off again, since the kernel never checks it a second time, and its holder asked for.
If that is another interface of this very router (an IPv4 and an IPv6 subnet of one network have one each)
the guests there are served, and all is well. Else it is tried again a few times, and then given up
until the next attach, with a sentence that names the holder. IPv4 depends on none of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from metadata_wsgi.netns.interface_state import ADDRESS, CHECKING, DUPLICATE, MISSING, USABLE, Interface, Links

TRIES = 3
PAUSE_S = 2.0
PATIENCE_S = 5.0
"""How long one check may take: up to 1 s of random delay and 1 s for each probe, of which there is one by default."""


def begin(links: Links, pattern: str) -> None:
    """Put the address on every interface that ``pattern`` matches, if none has it; wait for nothing.

    Where one has it already ``settle`` adds the others: it asks first whether they are on the same network.
    """
    wanted = _wanted(links, pattern)
    if all(interface.state == MISSING for interface in wanted):
        for interface in wanted:
            links.add(interface)


def settle(
    links: Links,
    pattern: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Wait until the address can be used on every interface; returns a sentence for each where it cannot.

    Interfaces that are down are not waited for: the kernel checks the address when they come up.
    """
    for tries_left in reversed(range(TRIES)):
        refused = _one_try(links, pattern, clock, sleep)
        if not refused or not tries_left:
            break
        sleep(PAUSE_S)
    slow = [f'{ADDRESS} on {found.name} is still being checked' for found in _checking(links, pattern)]
    return [*(_given_up(interface, mac) for interface, mac in refused.items()), *slow]


def remove(links: Links) -> bool:
    """Take the address off wherever it is ours; whether it was."""
    ours = [interface for interface in links.interfaces() if interface.ours]
    for interface in ours:
        links.remove(interface)
    return bool(ours)


def lacking(links: Links, pattern: str) -> dict[Interface, str]:
    """The interfaces without a usable address, each with the MAC of who holds it on its network ('': nobody).

    Where another interface of the same namespace holds it nothing is lacking, and nothing is known yet of one
    that is down or whose address is still being checked.
    """
    without = [found for found in _wanted(links, pattern) if found.up and found.state in (MISSING, DUPLICATE)]
    return _held_by_others(links, {interface: links.holder(interface) for interface in without})


def usable(links: Links, pattern: str) -> list[Interface]:
    """The interfaces on which guests can use the address."""
    return [interface for interface in _wanted(links, pattern) if interface.state == USABLE]


def matches(pattern: str, name: str) -> bool:
    """Whether iptables' ``-i pattern`` means the interface: ``+`` at the end is any rest."""
    return name.startswith(pattern[:-1]) if pattern.endswith('+') else name == pattern


def _one_try(
    links: Links, pattern: str, clock: Callable[[], float], sleep: Callable[[float], None]
) -> dict[Interface, str]:
    held = {}
    _take_off_duplicates(links, pattern)
    for interface in _wanted(links, pattern):
        if interface.state == MISSING:
            mac = links.holder(interface) if interface.up else ''
            if mac:
                held[interface] = mac
            else:
                links.add(interface)
    give_up_s = clock() + PATIENCE_S
    while _checking(links, pattern) and clock() < give_up_s:
        sleep(0.05)
    held |= {interface: links.holder(interface) for interface in _take_off_duplicates(links, pattern)}
    return _held_by_others(links, held)


def _take_off_duplicates(links: Links, pattern: str) -> list[Interface]:
    duplicates = [interface for interface in _wanted(links, pattern) if interface.state == DUPLICATE]
    for interface in duplicates:
        if interface.ours:
            links.remove(interface)
    return duplicates


def _held_by_others(links: Links, held: Mapping[Interface, str]) -> dict[Interface, str]:
    # Also its own: a distributed or redundant router has the same interface, with the same MAC, on other hosts.
    own = {interface.mac for interface in links.interfaces()} - {''}
    return {interface: mac for interface, mac in held.items() if mac not in own}


def _wanted(links: Links, pattern: str) -> list[Interface]:
    return [found for found in links.interfaces() if found.has_ipv6 and matches(pattern, found.name)]


def _checking(links: Links, pattern: str) -> Iterable[Interface]:
    return [found for found in _wanted(links, pattern) if found.up and found.state == CHECKING]


def _given_up(interface: Interface, mac: str) -> str:
    holder = f'{mac} on its network has it' if mac else 'somebody on its network has it'
    return (
        f'{ADDRESS} is not on {interface.name}, because {holder} (another DHCP agent of this network?); '
        'guests there are served over IPv4; attach it again when that one is gone'
    )
