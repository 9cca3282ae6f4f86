# SPDX-License-Identifier: Apache-2.0
"""Attaches the namespace of a router or an isolated network, and detaches it.

Attach checks that the namespace exists and that the proxy's port is free. It adds the rules (router) or the address
(network). Then it starts a namespace proxy, or makes the keeper listen. The rules also close the port for packets that
were not redirected. So they are added before a process listens. If no process can listen, the former rules are
restored.

Detach stops the listeners first and then removes the rules, so that the port is never open without rules. If a process
of this package still has the port open, detach fails and the rules stay. Detach also fails if the keeper does not
respond, because a worker may still have the socket.

An IPv6 error is only logged as a warning, because IPv4 works without IPv6. If the IPv6 rules cannot be added (no
ip6tables), the proxy listens on IPv4 only. The kernel needs about 2 s for duplicate address detection of
fe80::a9fe:a9fe. The wait for its result is the last step. In a DHCP namespace the proxy binds to this address before
the detection has finished.

Attach and detach are idempotent. ``mode_change`` starts and stops the listeners.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.net import listening_process
from metadata_wsgi.netns import dhcp_address, interface_state, link_local, mode_change, namespaces, proxy_process
from metadata_wsgi.netns.iptables import Iptables, kernel_families
from metadata_wsgi.netns.mode_change import KeeperListeners, ModeChanger
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.rules import DEFAULT_INTERFACES, DEFAULT_MARK, DEFAULT_PORT, Rule, redirect_port, rules_for
from metadata_wsgi.netns.runner import Runner
from metadata_wsgi.netns.target import NETWORK, NETWORK_PORT, PROCESS, ROUTER, AttachTarget, KeeperEntry

LOG = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 5.0
"""Longest wait for the workers to close their copies of a socket that the keeper has closed."""
FIRST_POLL_S = 0.001
ANY_IPV4_ADDRESS = '0.0.0.0'  # noqa: S104 (the rules limit access)
SYSTEMD_PID = 1


Clauses = tuple[str, ...]
"""Changes in a namespace, for example ``169.254.169.254 was added``."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What an attach has changed.

    ``listener``: a process was started or stopped, or the keeper's sockets changed. ``in_namespace``: the other
    changes.
    """

    listener: bool
    in_namespace: Clauses = ()


class RuleWriter(Protocol):
    """Writes the rules of namespaces. :class:`metadata_wsgi.netns.iptables.Iptables` implements it."""

    def apply(self, namespace: str, wanted: Sequence[Rule], *, families: Sequence[int]) -> bool:
        """Replace our rules in the namespace by ``wanted``. Returns whether anything changed. Raises NetnsError."""

    def replace(self, namespace: str, wanted: Sequence[Rule], *, families: Sequence[int]) -> tuple[Rule, ...] | None:
        """Like ``apply``, but returns our former rules; None if nothing changed. If it raises, no rule was changed."""

    def ours(self, namespace: str, *, families: Sequence[int]) -> list[Rule]:
        """The rules in the namespace that this package added."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A namespace with rules or address. ``interfaces`` is the pattern of the interfaces that get the IPv6 address.

    ``families`` are those that are served. ``clauses`` are the changes. ``undo`` removes the rules or the address that
    were added. ``has_ipv6``: IPv6 addresses were added.
    """

    interfaces: str
    families: tuple[int, ...]
    clauses: Clauses
    undo: Callable[[], object]
    has_ipv6: bool = False


class Attacher:
    """Attaches and detaches on this host.

    ``families``: the IP versions to serve, (4, 6) or (4,); by default those that the kernel supports. Without
    ``keeper`` only the mode PROCESS is possible. ``keeper_pid`` returns the keeper's pid, None if unknown.
    Threads may share an Attacher.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        proxy: ProxyCommand,
        iptables: RuleWriter | None = None,
        keeper: KeeperListeners | None = None,
        keeper_pid: Callable[[], int | None] = lambda: None,
        families: Sequence[int] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        stop_timeout_s: float = proxy_process.STOP_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._proxy = proxy
        self._iptables = iptables or Iptables(runner)
        self._families = tuple(families or kernel_families())
        self._close_timeout_s = close_timeout_s
        self._clock = clock
        self._sleep = sleep
        self._mode_changer = ModeChanger(
            runner,
            proxy,
            keeper,
            keeper_pid,
            start_timeout_s=start_timeout_s,
            stop_timeout_s=stop_timeout_s,
            close_timeout_s=close_timeout_s,
            clock=clock,
            sleep=sleep,
        )

    def attach(
        self,
        target: AttachTarget,
        *,
        mode: str = PROCESS,
        port: int = DEFAULT_PORT,
        interfaces: str = DEFAULT_INTERFACES,
        mark: str = DEFAULT_MARK,
        interface: str | None = None,
        wait_for_ipv6: bool = True,
    ) -> Changes:
        """Attach ``target``. Returns what was changed. Without any change ``target`` was attached already.

        ``mode`` is one of ``target.MODES``. ``port``, ``interfaces`` (pattern of the internal interfaces) and ``mark``
        are used for routers only. ``interface`` (networks only) gets 169.254.169.254. ``wait_for_ipv6``: wait for
        duplicate address detection, about 2 s; IPv4 is served meanwhile. Raises NetnsError if the namespace is missing
        or a step fails.
        """
        if not namespaces.exists(target.namespace):
            raise NetnsError(
                f'{namespaces.missing_reason(target.namespace)}: is {target.kind} {target.uuid} here, '
                f'and is its agent running? "ip netns list" lists the namespaces; --namespace selects another one'
            )
        if target.kind == NETWORK:
            port = NETWORK_PORT
            prepare = functools.partial(self._prepare_network, target, interface)
        else:
            prepare = functools.partial(self._prepare_router, target, mode, port, interfaces, mark)
        prepared: _Prepared | None = None
        former = self._mode_changer.entry_in_keeper(target) if mode == PROCESS else None

        def prepare_and_keep() -> _Prepared:
            nonlocal prepared
            prepared = prepare()
            return prepared

        try:
            prepared = namespaces.run_in(target.namespace, prepare_and_keep)
            hosts = self._hosts(target, prepared.interfaces if prepared.has_ipv6 else '', prepared.families)
            changed = self._mode_changer.serve(target, mode, port, hosts)
        except BaseException:
            # Ctrl-C may arrive when the namespace is prepared, and before ``run_in`` has returned.
            if prepared is not None:
                self._undo(target, port, prepared.undo)
            if former is not None:
                self._listen_again(target, former)
            raise
        changes = Changes(changed, prepared.clauses)
        if prepared.has_ipv6 and wait_for_ipv6:
            settled = self._settle_ipv6(target, mode, prepared.interfaces, port, changed)
            changes = Changes(changed | settled.listener, changes.in_namespace + settled.in_namespace)
        return changes

    def _prepare_network(self, target: AttachTarget, interface: str | None) -> _Prepared:
        """Add the addresses. Runs in the namespace."""
        clauses, undo = self._add_address(target, interface)
        interfaces = dhcp_address.interface_with_address(target.namespace) or ''
        return self._with_ipv6(target, NETWORK_PORT, _Prepared(interfaces, self._families, clauses, undo))

    def _prepare_router(self, target: AttachTarget, mode: str, port: int, interfaces: str, mark: str) -> _Prepared:
        """Check the port, and add the rules and the IPv6 addresses. Runs in the namespace."""
        former = redirect_port(self._iptables.ours(target.namespace, families=self._families))
        self._check_port(target, port, former)
        self._mode_changer.close_former_port(target, mode, port, former)
        wanted = rules_for(port=port, interfaces=interfaces, mark=mark, families=self._families)
        families, clauses, undo = self._add_rules(target, wanted)
        return self._with_ipv6(target, port, _Prepared(interfaces, families, clauses, undo))

    def _with_ipv6(self, target: AttachTarget, port: int, prepared: _Prepared) -> _Prepared:
        try:
            has_ipv6, clauses = self._begin_ipv6(target, prepared.interfaces, prepared.families)
        except BaseException:
            self._undo(target, port, prepared.undo)
            raise
        return replace(prepared, has_ipv6=has_ipv6, clauses=prepared.clauses + clauses)

    def settle(
        self, target: AttachTarget, *, mode: str, port: int = DEFAULT_PORT, interfaces: str = DEFAULT_INTERFACES
    ) -> Changes:
        """Wait for IPv6 after ``attach`` with ``wait_for_ipv6=False``. Returns what was changed since then."""
        if target.kind == NETWORK:
            port, interfaces = NETWORK_PORT, dhcp_address.interface_with_address(target.namespace) or ''
        if not self._has_interface_for_ipv6(target, interfaces, self._families):
            return Changes(False)
        if target.kind == ROUTER and not self._iptables.ours(target.namespace, families=[6]):
            # The IPv6 rules could not be added, so the address was not added either.
            return Changes(False)
        return self._settle_ipv6(target, mode, interfaces, port, started=False)

    def detach(self, target: AttachTarget) -> bool:
        """Stop the listeners, then remove address and rules. Returns whether there was anything to stop or remove.

        The namespace may already be deleted. Raises NetnsError if the keeper does not respond or a step fails. If a
        listener of this package still has the port open, no rule is removed.
        """
        changed, keeper_error = False, None
        try:
            changed |= self._mode_changer.detach_in_keeper(target)
        except NetnsError as error:
            keeper_error = error
        changed |= self._mode_changer.stop_process(target)
        if namespaces.exists(target.namespace):
            try:
                remove = functools.partial(self._remove_from_namespace, target, keeper_error is None)
                changed |= namespaces.run_in(target.namespace, remove)
            except NetnsError as error:
                if keeper_error:
                    raise NetnsError(f'{keeper_error}; {error}') from error
                # The namespace may have been deleted meanwhile, with its rules and addresses.
                if namespaces.exists(target.namespace):
                    raise
                changed = True
        if keeper_error:
            raise keeper_error
        return changed

    def _remove_from_namespace(self, target: AttachTarget, keeper_responds: bool) -> bool:
        if target.kind == ROUTER:
            self._wait_until_closed(target, keeper_responds)
        changed = False
        if set(interface_state.names(target.namespace)) - {'lo'}:
            with interface_state.open_table(target.namespace) as table:
                changed |= link_local.remove(table)
        if target.kind == NETWORK:
            changed |= dhcp_address.remove(target.namespace)
        return changed | self._remove_rules(target)

    def _wait_until_closed(self, target: AttachTarget, keeper_responds: bool) -> None:
        """Wait until no program of this package listens on the redirect port. Raises NetnsError after the timeout."""
        port = redirect_port(self._iptables.ours(target.namespace, families=self._families))
        # If the keeper does not respond, its workers do not close the socket, so it is useless to wait.
        deadline_s, pause_s = self._clock() + (self._close_timeout_s if keeper_responds else 0.0), FIRST_POLL_S
        while port is not None and proxy_process.is_port_open(target.namespace, port):
            if self._clock() >= deadline_s:
                process = self._listening_process(target, port)
                if (process is None and keeper_responds) or _is_foreign(process):
                    return
                if process is not None and process.is_own:
                    holder, remedy = f'pid {process.pid} ({process.program})', 'stop it'
                else:
                    holder = 'systemd, which keeps the sockets of the keeper' if process else 'an unknown process'
                    remedy = 'start the keeper'
                raise NetnsError(
                    f'port {port} in {target.namespace} is still open in {holder}; '
                    f'the rules stay until it is closed: {remedy}, and detach again'
                )
            # Workers usually close their copy within a millisecond.
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, mode_change.POLL_S)

    def _remove_rules(self, target: AttachTarget) -> bool:
        try:
            return self._iptables.apply(target.namespace, (), families=self._families)
        except NetnsError:
            # ``apply`` changes all families or none. So if IPv6 failed, the IPv4 rules are removed alone.
            for family in self._families[:-1]:
                self._iptables.apply(target.namespace, (), families=[family])
            raise

    def _check_port(self, target: AttachTarget, port: int, former: int | None) -> None:
        """Raise NetnsError if another program listens on the port. Called before anything is changed.

        ``former`` is the port to which the rules in the namespace redirect now; None without rules.
        """
        if former == port or not proxy_process.is_port_open(target.namespace, port):
            # With rules for this port the target is already attached. The process is not searched for: that is slow,
            # and ``watch`` attaches often.
            return
        process = self._listening_process(target, port)
        if process is None or not _is_foreign(process):
            return
        if process.pid != proxy_process.running_pid(self._proxy.pid_file(target.uuid), target.uuid):
            raise NetnsError(process.message(port, target.namespace))

    def _may_be_ours(self, target: AttachTarget, port: int) -> bool:
        """Whether a process of this package, or an unknown process, listens on the port."""
        if not proxy_process.is_port_open(target.namespace, port):
            return False
        return not _is_foreign(self._listening_process(target, port))

    def _listening_process(self, target: AttachTarget, port: int) -> listening_process.ListeningProcess | None:
        return namespaces.run_in(target.namespace, lambda: listening_process.find(port))

    def _add_address(self, target: AttachTarget, interface: str | None) -> tuple[Clauses, Callable[[], object]]:
        """Add 169.254.169.254. Returns what was changed, and a function that undoes this."""
        if not dhcp_address.add(target.namespace, interface):
            return (), lambda: None
        return _logged(target, f'{dhcp_address.ADDRESS} was added'), lambda: dhcp_address.remove(target.namespace)

    def _add_rules(
        self, target: AttachTarget, wanted: Sequence[Rule]
    ) -> tuple[tuple[int, ...], Clauses, Callable[[], object]]:
        """Add the rules; only the IPv4 rules if the IPv6 rules cannot be added.

        Returns the families of the added rules, what was changed, and a function that undoes the change.
        """
        families = self._families
        try:
            former = self._iptables.replace(target.namespace, wanted, families=families)
        except NetnsError as error:
            if families == (4,):
                raise
            families, ipv6_error = (4,), error
            ipv4 = [rule for rule in wanted if rule.family == 4]
            former = self._iptables.replace(target.namespace, ipv4, families=families)
            with interface_state.open_table(target.namespace) as table:
                link_local.remove(table)
            LOG.warning('%s %s is attached without IPv6: %s', target.kind, target.uuid, ipv6_error)
        if former is None:
            return families, (), lambda: None
        undo = functools.partial(self._iptables.apply, target.namespace, former, families=families)
        return families, _logged(target, 'rules were added'), undo

    def _undo(self, target: AttachTarget, port: int, undo: Callable[[], object]) -> None:
        """Remove the rules and addresses that this attach added, unless a listener of ours needs them."""
        try:
            if not self._may_be_ours(target, port):
                undo()
                if target.kind == ROUTER and not self._iptables.ours(target.namespace, families=self._families):
                    with interface_state.open_table(target.namespace) as table:
                        link_local.remove(table)
        except NetnsError as error:
            if namespaces.exists(target.namespace):
                LOG.warning('%s %s: the added rules could not be removed: %s', target.kind, target.uuid, error)

    def _listen_again(self, target: AttachTarget, former: KeeperEntry) -> None:
        """Make the keeper listen as before, unless the rules that protect its port are now those of another port."""
        try:
            port = redirect_port(self._iptables.ours(target.namespace, families=self._families))
        except NetnsError as error:
            LOG.warning('%s %s: the keeper does not listen again: %s', target.kind, target.uuid, error)
            return
        if port in (None, former.port):
            self._mode_changer.listen_again(target, former)

    def _has_interface_for_ipv6(self, target: AttachTarget, interfaces: str, families: Sequence[int]) -> bool:
        return 6 in families and any(
            link_local.matches(interfaces, name) for name in interface_state.names(target.namespace)
        )

    def _begin_ipv6(self, target: AttachTarget, interfaces: str, families: Sequence[int]) -> tuple[bool, Clauses]:
        """Add fe80::a9fe:a9fe. Returns whether IPv6 can be served, and what was changed."""
        if not self._has_interface_for_ipv6(target, interfaces, families):
            return False, ()
        try:
            with interface_state.open_table(target.namespace) as table:
                added, removed = link_local.begin(table, interfaces)
        except NetnsError as error:
            LOG.warning('%s %s is attached without IPv6: %s', target.kind, target.uuid, error)
            return False, ()
        return True, _logged(target, *_address_clauses(added, removed))

    def _settle_ipv6(self, target: AttachTarget, mode: str, interfaces: str, port: int, started: bool) -> Changes:
        """Wait for the IPv6 address. If the proxy does not serve it, replace the proxy. Returns what was changed.

        ``started``: whether this attach started the proxy. Such a proxy is not replaced; a warning is logged.
        """
        try:
            with interface_state.open_table(target.namespace) as table:
                before = link_local.names_with_address(table, interfaces)
                for message in link_local.settle(table, interfaces, clock=self._clock, sleep=self._sleep):
                    LOG.warning('%s %s: %s', target.kind, target.uuid, message)
                after = link_local.names_with_address(table, interfaces)
                unserved = [
                    found
                    for found in link_local.usable_interfaces(table, interfaces)
                    if table.refuses_connection(found, port)
                ]
        except NetnsError as error:
            LOG.warning('%s %s is attached without IPv6: %s', target.kind, target.uuid, error)
            return Changes(False)
        clauses = _logged(
            target,
            *_address_clauses(
                [name for name in after if name not in before], [name for name in before if name not in after]
            ),
        )
        if not unserved:
            return Changes(False, clauses)
        if started:
            LOG.warning(
                '%s %s: its proxy does not serve %s; see its log', target.kind, target.uuid, interface_state.ADDRESS
            )
            return Changes(False, clauses)
        # The proxy was started without IPv6, or another interface of the same name has replaced the interface.
        hosts = self._hosts(target, interfaces, self._families)
        return Changes(self._mode_changer.serve_again(target, mode, port, hosts), clauses)

    def _hosts(self, target: AttachTarget, ipv6_interface: str, families: Sequence[int]) -> list[str]:
        """The addresses to listen on. ``ipv6_interface``: the network's interface with the IPv6 address, '' if none."""
        if target.kind == NETWORK:
            return [dhcp_address.ADDRESS, *([f'{interface_state.ADDRESS}%{ipv6_interface}'] if ipv6_interface else [])]
        # Without the IPv6 rules, which close the port, the proxy must not listen on IPv6.
        return [''] if tuple(families) == self._families else [ANY_IPV4_ADDRESS]


def _is_foreign(process: listening_process.ListeningProcess | None) -> bool:
    """Whether the listening process is not of this package. None, an unknown process, is not foreign."""
    # systemd has copies of the keeper's sockets (``keeper.fdstore``).
    return process is not None and not process.is_own and process.pid != SYSTEMD_PID


def _logged(target: AttachTarget, *clauses: str) -> Clauses:
    """Log each of ``clauses``. Returns them."""
    for clause in clauses:
        LOG.info('%s %s: %s', target.kind, target.uuid, clause)
    return clauses


def _address_clauses(added: Sequence[str], removed: Sequence[str]) -> list[str]:
    """The changes of fe80::a9fe:a9fe on the interfaces with these names."""
    changes = (('added to', added), ('removed from', removed))
    return [f'{interface_state.ADDRESS} was {change} {", ".join(names)}' for change, names in changes if names]
