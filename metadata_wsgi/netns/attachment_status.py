# SPDX-License-Identifier: Apache-2.0
"""The attached routers and networks of this host, and their problems.

The data come from the kernel, the pid files and the keeper, and not from a stored list. So the status shows changes by
other programs too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from metadata_wsgi.config import state_paths
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import dhcp_address, interface_state, link_local, namespaces, proxy_process
from metadata_wsgi.netns.iptables import kernel_families
from metadata_wsgi.netns.rules import (
    DEFAULT_INTERFACES,
    DEFAULT_MARK,
    DEFAULT_PORT,
    PREROUTING,
    Rule,
    rules_for,
)
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

LOG = logging.getLogger(__name__)

STALE_AFTER_S = 5.0
"""A file in /run/netns without a namespace is stale after this time. A newer file may still become a namespace."""

YES, PARTLY, NO = 'yes', 'partly', 'no'
UNKNOWN = 'unknown'
"""The mode if the keeper does not respond and no process of the target runs."""

NO_LISTENER = 'no proxy runs, and no keeper has a socket for it; attach it again'
KEEPER_UNAVAILABLE = 'no proxy runs, and the keeper does not respond, so it is unknown whether it has a socket'


@dataclass(frozen=True, slots=True)
class AttachmentStatus:
    """The status of a router or network that is attached, or partly attached.

    ``namespace`` is None if it was deleted. ``mode`` is one of ``target.MODES`` or UNKNOWN. ``pid`` is the pid of
    the running process, else None. Requests are redirected to ``port``. ``rules`` says whether the redirect rules
    of a router, or the address 169.254.169.254 of a network, are there: YES, PARTLY or NO. ``problems`` are sentences,
    none if all is well. ``notes`` are sentences that need no action.
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
        """The router or network with its namespace, for example to detach it."""
        return AttachTarget.of(self.kind, self.uuid, self.namespace)


class RuleReader(Protocol):
    """Reads rules. :class:`metadata_wsgi.netns.iptables.Iptables` implements it."""

    def ours(self, namespace: str, *, families: Sequence[int]) -> list[Rule]:
        """The rules in the namespace that this package added."""

    def redirect_ports(self, namespace: str) -> set[int]:
        """The ports to which rules of any program redirect requests to 169.254.169.254:80."""


def list_attachments(
    iptables: RuleReader,
    *,
    state_path: str,
    families: Sequence[int] | None = None,
    keeper_entries: Iterable[KeeperEntry] | None = (),
) -> list[AttachmentStatus]:
    """The status of each target with a pid file, an entry in the keeper, rules of this package, or a stale name.

    ``keeper_entries``: None if the keeper does not respond.
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
        if namespace not in seen and _has_our_rules(namespace, iptables, families):
            yield AttachTarget(*_kind_and_id(namespace), namespace)
    for name in namespaces.stale_names(STALE_AFTER_S):
        # Stale names of other programs, such as cni-..., are not reported.
        if name not in seen and name.startswith(tuple(PREFIXES.values())):
            yield AttachTarget(*_kind_and_id(name), name)


def _has_our_rules(namespace: str, iptables: RuleReader, families: Sequence[int]) -> bool:
    """Whether the namespace has rules of this package.

    Also True if the rules of a router's or network's namespace cannot be read, so that the status shows the error.
    """
    try:
        return bool(iptables.ours(namespace, families=families))
    except NetnsError as error:
        LOG.debug('%s: %s', namespace, error)
        return namespaces.exists(namespace) and namespace.startswith(tuple(PREFIXES.values()))


def _target_of_process(uuid: str, pid: int | None) -> AttachTarget:
    namespace = namespaces.name_of(pid) if pid else None
    if namespace is None:
        candidates = [AttachTarget.of(kind, uuid) for kind in (ROUTER, NETWORK)]
        return next((target for target in candidates if namespaces.exists(target.namespace)), candidates[0])
    # If the namespace has an unusual name, the port shows the kind: only a network's proxy listens on port 80.
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
    problems = [] if exists else [namespaces.missing_reason(target.namespace)]
    notes: list[str] = []
    port, rules = NETWORK_PORT if target.kind == NETWORK else DEFAULT_PORT, NO
    try:
        if exists:
            port, rules, interfaces, rule_problems = _check_namespace(target, iptables, families, entry, pid)
            problems += rule_problems
        problems += _keeper_problems(entry, pid, port) if entry else _process_problems(target, pid, port)
        # IPv6 is checked only if there is no other problem: the attach that repairs the problem also repairs IPv6.
        if exists and interfaces and 6 in families and not problems:
            problems, notes = _check_ipv6(target, interfaces, port)
    except NetnsError as error:
        # The namespace may have been deleted meanwhile. The other targets must still be listed.
        problems.append(str(error))
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


def _check_namespace(
    target: AttachTarget,
    iptables: RuleReader,
    families: Sequence[int],
    entry: KeeperEntry | None,
    pid: int | None,
) -> tuple[int, str, str, list[str]]:
    """Returns (port, YES|PARTLY|NO, interfaces, problems) for a router's rules or a network's address."""
    if target.kind == NETWORK:
        interface = dhcp_address.interface_with_address(target.namespace) or ''
        missing = [] if interface else [f'the address {dhcp_address.ADDRESS} is missing; attach it again']
        return NETWORK_PORT, YES if interface else NO, interface, missing
    found, problems = _read_rules(target.namespace, iptables, families)
    port, rules = check_rules(found, families)
    if rules == PARTLY and 6 in families and check_rules(found, [4]) == (port, YES):
        problems.append('there are no IPv6 rules, so only IPv4 is served; "attach" prints the reason')
    elif rules == PARTLY:
        problems.append('the rules are only partly there; attach it again')
    elif rules == NO:
        agents_port = _port_of_an_agents_rules(iptables.redirect_ports(target.namespace), entry, pid)
        if agents_port is not None:
            return agents_port, YES, '', problems
        problems.append('the rules are missing; attach it again')
    return port, rules, _rule_values(found).get('-i', ''), problems


def _port_of_an_agents_rules(redirect_ports: set[int], entry: KeeperEntry | None, pid: int | None) -> int | None:
    """The port on which keeper or process ``pid`` listen, if rules redirect to it. None if no rule does.

    A router without our rules may have those of an L3 agent that started a holder or a namespace proxy for it.
    """
    if entry is not None:
        return entry.port if entry.port in redirect_ports else None
    return next((port for port in sorted(redirect_ports) if pid and proxy_process.listens(pid, port)), None)


def _read_rules(namespace: str, iptables: RuleReader, families: Sequence[int]) -> tuple[list[Rule], list[str]]:
    """Return (rules of this package, problems).

    If the rules of one family cannot be read, this is a problem, and the rules of the other family are returned.
    """
    try:
        return iptables.ours(namespace, families=families), []
    except NetnsError as error:
        if len(families) < 2:
            raise
        first_error = error
    found: list[Rule] = []
    problems = []
    for family in families:
        try:
            found += iptables.ours(namespace, families=[family])
        except NetnsError as error:
            problems.append(f'the IPv{family} rules cannot be read: {error}')
    if len(problems) == len(families):
        raise first_error
    return found, problems


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
    if pid is not None and not proxy_process.is_holder(pid):
        problems.append(f'pid {pid} runs beside the keeper; attach it again')
    if not entry.workers:
        problems.append(NO_WORKER[entry.mode])
    return problems


def _check_ipv6(target: AttachTarget, interfaces: str, port: int) -> tuple[list[str], list[str]]:
    """(problems, notes) about the IPv6 metadata address on the interfaces that the pattern ``interfaces`` matches."""
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
                    # Usual if a network has several DHCP agents: only one of them has the address.
                    notes.append(f'{mac} on the network has {interface_state.ADDRESS}: usually another DHCP agent')
            problems += [
                f'the proxy does not serve {interface_state.ADDRESS} on {interface.name}; attach it again'
                for interface in link_local.usable_interfaces(table, interfaces)
                if table.refuses_connection(interface, port)
            ]
            notes += [
                f'{interface_state.ADDRESS} is not on {interface.name}, because it has no address of its own, '
                'as on the standby of an HA router'
                for interface in link_local.standby_interfaces(table, interfaces)
            ]
    except NetnsError as error:
        problems.append(str(error))
    return problems, notes


def check_rules(rules: Iterable[Rule], families: Sequence[int], default_port: int = DEFAULT_PORT) -> tuple[int, str]:
    """The port to which a router's ``rules`` redirect, and whether the rules are complete: (port, YES|PARTLY|NO).

    The rules are complete if ``rules_for`` returns the same rules for the port, interfaces and mark that they contain.
    """
    found = set(rules)
    values = _rule_values(found)
    port = int(values.get('--to-ports', default_port))
    wanted = rules_for(
        port=port,
        interfaces=values.get('-i', DEFAULT_INTERFACES),
        mark=values.get('--set-xmark', DEFAULT_MARK),
        families=families,
    )
    return port, YES if found == set(wanted) else PARTLY if found else NO


def _rule_values(rules: Iterable[Rule]) -> dict[str, str]:
    """The values of --to-ports, of -i in the redirect rule, and of --set-xmark."""
    values: dict[str, str] = {}
    for rule in rules:
        for flag in ('--to-ports', '-i', '--set-xmark'):
            if flag in rule.args and (flag != '-i' or rule.chain == PREROUTING):
                values[flag] = rule.args[rule.args.index(flag) + 1]
    return values
