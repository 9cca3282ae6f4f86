# SPDX-License-Identifier: Apache-2.0
"""What is attached on this host, and what is wrong with it.

Read from the kernel, the pid files and the keeper, not from a record: what another program removed is noticed.
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
from metadata_wsgi.netns.target import (
    NETWORK,
    NETWORK_PORT,
    NO_WORKER,
    PREFIXES,
    PROCESS,
    ROUTER,
    AttachTarget,
    KeeperEntry,
)

YES, PARTLY, NO = 'yes', 'partly', 'no'
UNKNOWN = 'unknown'
"""The mode of a target that no process serves, while the keeper does not respond."""

NO_LISTENER = 'no proxy runs, and no keeper has a socket of it; attach it again'
KEEPER_UNAVAILABLE = 'no proxy runs; whether the keeper has a socket of it is unknown while the keeper does not respond'


@dataclass(frozen=True, slots=True)
class AttachmentStatus:
    """One router or network of this host that has anything of ours.

    ``namespace`` is None if it is gone. ``mode`` is one of ``target.MODES`` or UNKNOWN, ``pid`` a process of its own,
    ``port`` the one that requests are redirected to. ``rules`` is YES, PARTLY or NO (for a network: whether the address
    is there). ``problems`` are sentences, none if all is well; ``notes`` are facts that need no repair.
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
    def target(self) -> AttachTarget:
        """The target, for detaching it."""
        return AttachTarget.of(self.kind, self.uuid, self.namespace)


class RuleReader(Protocol):
    """Reads rules; :class:`metadata_wsgi.netns.iptables.Iptables` is the real one."""

    def ours(self, namespace: str, *, families: Sequence[int]) -> list[Rule]:
        """Every rule of ours in the namespace."""


def list_attachments(
    iptables: RuleReader,
    *,
    state_path: str,
    families: Sequence[int] | None = None,
    keeper_entries: Iterable[KeeperEntry] | None = (),
) -> list[AttachmentStatus]:
    """Everything attached on this host: each target that has a pid file, an entry in the keeper, or rules of ours.

    ``keeper_entries`` None: the keeper does not respond.
    """
    families = tuple(families or kernel_families())
    entries = {(entry.target.kind, entry.target.uuid): entry for entry in keeper_entries or ()}
    targets = _targets(state_path, iptables, families, [entry.target for entry in entries.values()])
    found = [
        _status(target, state_path, iptables, families, entries.get((target.kind, target.uuid))) for target in targets
    ]
    if keeper_entries is not None:
        return found
    return [one if one.pid else _with_unknown_mode(one) for one in found]


def _with_unknown_mode(status: AttachmentStatus) -> AttachmentStatus:
    problems = tuple(KEEPER_UNAVAILABLE if problem == NO_LISTENER else problem for problem in status.problems)
    return replace(status, mode=UNKNOWN, problems=problems)


def _targets(
    state_path: str, iptables: RuleReader, families: Sequence[int], in_keeper: Sequence[AttachTarget]
) -> Iterator[AttachTarget]:
    seen = {target.namespace for target in in_keeper}
    yield from sorted(in_keeper, key=lambda target: target.namespace)
    for file in sorted(Path(state_paths.pid_file(state_path, '_')).parent.glob('*.pid')):
        target = _target_of_process(file.stem, proxy_process.running_pid(str(file), file.stem))
        if target not in in_keeper:
            yield target
        seen.add(target.namespace)
    for namespace in namespaces.names():
        if namespace not in seen and iptables.ours(namespace, families=families):
            yield AttachTarget(*_kind_and_id(namespace), namespace)


def _target_of_process(uuid: str, pid: int | None) -> AttachTarget:
    namespace = namespaces.name_of(pid) if pid else None
    if namespace is None:
        candidates = [AttachTarget.of(kind, uuid) for kind in (ROUTER, NETWORK)]
        return next((target for target in candidates if namespaces.exists(target.namespace)), candidates[0])
    # The namespace may have another name. Then the port decides: only a network's proxy listens on 80.
    kind, name = _kind_and_id(namespace)
    if name != uuid and pid and proxy_process.listens(pid, NETWORK_PORT):
        kind = NETWORK
    return AttachTarget(kind, uuid, namespace)


def _kind_and_id(namespace: str) -> tuple[str, str]:
    for kind, prefix in PREFIXES.items():
        if namespace.startswith(prefix):
            return kind, namespace.removeprefix(prefix)
    return ROUTER, namespace


def _status(
    target: AttachTarget, state_path: str, iptables: RuleReader, families: Sequence[int], entry: KeeperEntry | None
) -> AttachmentStatus:
    pid = proxy_process.running_pid(state_paths.pid_file(state_path, target.uuid), target.uuid)
    exists = namespaces.exists(target.namespace)
    problems = [] if exists else [f'there is no namespace {target.namespace}']
    port, rules = NETWORK_PORT, NO
    interfaces = ''
    if target.kind == NETWORK:
        interfaces = (dhcp_address.interface_with_address(target.namespace) if exists else None) or ''
        rules = YES if interfaces else NO
    else:
        found = iptables.ours(target.namespace, families=families) if exists else []
        port, rules = check_rules(found, families)
        interfaces = _rule_values(found).get('-i', '')
    if exists and rules == PARTLY:
        problems.append('the rules are only partly there; attach it again')
    elif exists and rules == NO:
        missing = f'the address {dhcp_address.ADDRESS} is' if target.kind == NETWORK else 'the rules are'
        problems.append(f'{missing} missing; attach it again')
    problems += _keeper_problems(entry, pid, port) if entry else _process_problems(target, pid, port)
    notes: list[str] = []
    # An attach that repairs another problem repairs IPv6 too.
    if interfaces and 6 in families and not problems:
        problems, notes = _check_ipv6(target, interfaces, port)
    return AttachmentStatus(
        namespace=target.namespace if exists else None,
        uuid=target.uuid,
        kind=target.kind,
        pid=pid,
        port=port,
        rules=rules,
        problems=tuple(problems),
        notes=tuple(notes),
        mode=entry.mode if entry else PROCESS,
    )


def _process_problems(target: AttachTarget, pid: int | None, port: int) -> list[str]:
    if pid is None:
        return [NO_LISTENER]
    if namespaces.name_of(pid) != target.namespace:
        return [f'pid {pid} runs in another namespace; attach it again']
    if not proxy_process.listens(pid, port):
        return [f'pid {pid} does not listen on port {port}; attach it again']
    return []


def _keeper_problems(entry: KeeperEntry, pid: int | None, port: int) -> list[str]:
    problems = []
    if entry.port != port:
        problems.append(f'the keeper listens on port {entry.port}, requests are redirected to {port}; attach it again')
    if pid is not None:
        problems.append(f'pid {pid} runs beside the keeper; attach it again')
    if not entry.workers:
        problems.append(NO_WORKER[entry.mode])
    return problems


def _check_ipv6(target: AttachTarget, interfaces: str, port: int) -> tuple[list[str], list[str]]:
    """(problems, notes) of the IPv6 address on those interfaces."""
    problems, notes = [], []
    try:
        with interface_state.open_table(target.namespace) as table:
            for interface, mac in link_local.missing_addresses(table, interfaces).items():
                if not mac:
                    problems.append(f'{interface_state.ADDRESS} is missing on {interface.name}; attach it again')
                elif target.kind == ROUTER:
                    problems.append(
                        f'{interface_state.ADDRESS} is missing on {interface.name}: {mac} on its network has it'
                    )
                else:
                    # Usual for all but one of the DHCP agents of a network.
                    notes.append(f'{mac} on the network has {interface_state.ADDRESS}: usually another DHCP agent')
            problems += [
                f'the proxy does not serve {interface_state.ADDRESS} on {interface.name}; attach it again'
                for interface in link_local.usable_interfaces(table, interfaces)
                if table.refuses_connection(interface, port)
            ]
    except NetnsError as error:
        problems.append(str(error))
    return problems, notes


def check_rules(rules: Iterable[Rule], families: Sequence[int], default_port: int = 9697) -> tuple[int, str]:
    """The port that a router's ``rules`` redirect to, and whether all are there: (port, YES|PARTLY|NO).

    Port and interfaces are read from the redirect, the mark from the rule that sets it.
    """
    found = set(rules)
    values = _rule_values(found)
    port = int(values.get('--to-ports', default_port))
    wanted = rules_for(
        port=port,
        interfaces=values.get('-i', 'qr-+'),
        mark=values.get('--set-xmark', '0x1/0xffff'),
        families=families,
    )
    return port, YES if found == set(wanted) else PARTLY if found else NO


def _rule_values(rules: Iterable[Rule]) -> dict[str, str]:
    """The values of --to-ports, -i (of the redirect) and --set-xmark."""
    values: dict[str, str] = {}
    for rule in rules:
        for flag in ('--to-ports', '-i', '--set-xmark'):
            if flag in rule.args and (flag != '-i' or rule.chain == PREROUTING):
                values[flag] = rule.args[rule.args.index(flag) + 1]
    return values
