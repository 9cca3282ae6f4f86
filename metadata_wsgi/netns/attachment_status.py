# SPDX-License-Identifier: Apache-2.0
"""What is attached on this host, and what of it is only half there.

Read from the kernel, the pid files and the keeper, not from a record of ours: what somebody else removed is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from metadata_wsgi.config import state_paths
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import dhcp_address, interface_state, link_local, namespaces, proxy_process
from metadata_wsgi.netns.attach import kernel_families
from metadata_wsgi.netns.rules import PREROUTING, Rule, rules_for
from metadata_wsgi.netns.target import NETWORK, NETWORK_PORT, NOBODY_SERVES, PREFIXES, PROCESS, ROUTER, Kept, Place

YES, PARTLY, NO = 'yes', 'partly', 'no'
UNKNOWN = 'unknown'
"""The mode of what no process serves, while the keeper is away."""

NOBODY_LISTENS = 'no proxy runs, and no keeper has a socket of it; attach it again'
KEEPER_AWAY = 'no proxy runs; whether the keeper had a socket of it is not known while it is away'


@dataclass(frozen=True, slots=True)
class Attached:
    """One router or network of this host that has anything of ours.

    ``namespace`` is None if it is gone; ``mode`` is one of ``place.MODES`` or UNKNOWN, ``pid`` a process of its own;
    ``port`` is where guests are sent to; ``rules`` is YES, PARTLY or NO (for a network: whether the address is there);
    ``problems`` are sentences, none if all is well; ``notes`` are what is worth knowing and needs no repair.
    """

    namespace: str | None
    uuid: str
    kind: str
    pid: int | None
    port: int
    rules: str
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    mode: str = PROCESS

    @property
    def place(self) -> Place:
        """Where it is, for detaching it."""
        return Place.of(self.kind, self.uuid, self.namespace)


class RuleReader(Protocol):
    """Reads rules; :class:`metadata_wsgi.netns.iptables.Iptables` is the real one."""

    def ours(self, namespace: str, *, families: Sequence[int]) -> list[Rule]:
        """Every rule of ours in the namespace."""


def attached(
    iptables: RuleReader, *, state_path: str, families: Sequence[int] | None = None, kept: Iterable[Kept] | None = ()
) -> list[Attached]:
    """Everything attached on this host: what has a pid file here, or is kept by the keeper, or has rules of ours.

    ``kept`` is what the keeper has; None: it is away and cannot be asked.
    """
    families = tuple(families or kernel_families())
    by_place = {(one.place.kind, one.place.uuid): one for one in kept or ()}
    places = _places(state_path, iptables, families, [one.place for one in by_place.values()])
    found = [_look(place, state_path, iptables, families, by_place.get((place.kind, place.uuid))) for place in places]
    if kept is not None:
        return found
    return [one if one.pid else replace(one, mode=UNKNOWN, problems=_of_unknown(one)) for one in found]


def _of_unknown(one: Attached) -> tuple[str, ...]:
    return tuple(KEEPER_AWAY if problem == NOBODY_LISTENS else problem for problem in one.problems)


def _places(state_path: str, iptables: RuleReader, families: Sequence[int], kept: Sequence[Place]) -> Iterator[Place]:
    seen = {place.namespace for place in kept}
    yield from sorted(kept, key=lambda place: place.namespace)
    for file in sorted(Path(state_paths.pid_file(state_path, '_')).parent.glob('*.pid')):
        place = _place_of(file.stem, proxy_process.active(str(file), file.stem))
        if place not in kept:
            yield place
        seen.add(place.namespace)
    for namespace in namespaces.names():
        if namespace not in seen and iptables.ours(namespace, families=families):
            yield Place(*_named_after(namespace), namespace)


def _place_of(uuid: str, pid: int | None) -> Place:
    namespace = namespaces.name_of(pid) if pid else None
    if namespace is None:
        candidates = [Place.of(kind, uuid) for kind in (ROUTER, NETWORK)]
        return next((place for place in candidates if namespaces.exists(place.namespace)), candidates[0])
    # In a namespace of another name the port tells: only a network's proxy is on 80.
    kind, name = _named_after(namespace)
    if name != uuid and pid and proxy_process.listens(pid, NETWORK_PORT):
        kind = NETWORK
    return Place(kind, uuid, namespace)


def _named_after(namespace: str) -> tuple[str, str]:
    for kind, prefix in PREFIXES.items():
        if namespace.startswith(prefix):
            return kind, namespace.removeprefix(prefix)
    return ROUTER, namespace


def _look(place: Place, state_path: str, iptables: RuleReader, families: Sequence[int], kept: Kept | None) -> Attached:
    pid = proxy_process.active(state_paths.pid_file(state_path, place.uuid), place.uuid)
    there = namespaces.exists(place.namespace)
    problems = [] if there else [f'there is no namespace {place.namespace}']
    port, rules = NETWORK_PORT, NO
    interfaces = ''
    if place.kind == NETWORK:
        interfaces = (dhcp_address.where(place.namespace) if there else None) or ''
        rules = YES if interfaces else NO
    else:
        found = iptables.ours(place.namespace, families=families) if there else []
        port, rules = judge(found, families)
        interfaces = _said(found).get('-i', '')
    if there and rules == PARTLY:
        problems.append('the rules are only partly there; attach it again')
    elif there and rules == NO:
        missing = f'the address {dhcp_address.ADDRESS} is' if place.kind == NETWORK else 'the rules are'
        problems.append(f'{missing} missing; attach it again')
    problems += _kept_problems(kept, pid, port) if kept else _process_problems(place, pid, port)
    notes: list[str] = []
    # What is wrong already is repaired by the same attach.
    if interfaces and 6 in families and not problems:
        problems, notes = _ipv6(place, interfaces, port)
    where = place.namespace if there else None
    mode = kept.mode if kept else PROCESS
    return Attached(where, place.uuid, place.kind, pid, port, rules, tuple(problems), tuple(notes), mode)


def _process_problems(place: Place, pid: int | None, port: int) -> list[str]:
    if pid is None:
        return [NOBODY_LISTENS]
    if namespaces.name_of(pid) != place.namespace:
        return [f'pid {pid} runs in another namespace; attach it again']
    if not proxy_process.listens(pid, port):
        return [f'pid {pid} does not listen on port {port}; attach it again']
    return []


def _kept_problems(kept: Kept, pid: int | None, port: int) -> list[str]:
    problems = []
    if kept.port != port:
        problems.append(f'the keeper listens on port {kept.port}, guests are sent to {port}; attach it again')
    if pid is not None:
        problems.append(f'pid {pid} runs beside the keeper; attach it again')
    if not kept.workers:
        problems.append(NOBODY_SERVES[kept.mode])
    return problems


def _ipv6(place: Place, interfaces: str, port: int) -> tuple[list[str], list[str]]:
    """(problems, notes) of the IPv6 address on those interfaces."""
    problems, notes = [], []
    try:
        with interface_state.opened(place.namespace) as opened:
            for interface, mac in link_local.lacking(opened, interfaces).items():
                if not mac:
                    problems.append(f'{interface_state.ADDRESS} is missing on {interface.name}; attach it again')
                elif place.kind == ROUTER:
                    problems.append(
                        f'{interface_state.ADDRESS} is missing on {interface.name}: {mac} on its network has it'
                    )
                else:
                    # The usual state of all but one where a network has several DHCP agents.
                    notes.append(
                        f'{interface_state.ADDRESS} is held by {mac} on the network, another DHCP agent if all is well'
                    )
            problems += [
                f'the proxy does not serve {interface_state.ADDRESS} on {interface.name}; attach it again'
                for interface in link_local.usable(opened, interfaces)
                if opened.refuses(interface, port)
            ]
    except NetnsError as error:
        problems.append(str(error))
    return problems, notes


def judge(rules: Iterable[Rule], families: Sequence[int], default_port: int = 9697) -> tuple[int, str]:
    """To which port a router's ``rules`` send its guests, and whether all are there: (port, YES|PARTLY|NO).

    Port and interfaces are read from the redirect, the mark from the rule that sets it.
    """
    found = set(rules)
    values = _said(found)
    port = int(values.get('--to-ports', default_port))
    wanted = rules_for(
        port=port,
        interfaces=values.get('-i', 'qr-+'),
        mark=values.get('--set-xmark', '0x1/0xffff'),
        families=families,
    )
    return port, YES if found == set(wanted) else PARTLY if found else NO


def _said(rules: Iterable[Rule]) -> dict[str, str]:
    values: dict[str, str] = {}
    for rule in rules:
        for flag in ('--to-ports', '-i', '--set-xmark'):
            if flag in rule.args and (flag != '-i' or rule.chain == PREROUTING):
                values[flag] = rule.args[rule.args.index(flag) + 1]
    return values
