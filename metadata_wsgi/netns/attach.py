# SPDX-License-Identifier: Apache-2.0
"""Attach the metadata path to a router's or an isolated network's namespace, and detach it.

Attach: the namespace is there, rules (router) or address (network), process, and it listens. In that
order, so that what closes the router is there before anything is opened. Detach: the other way round.

IPv6 comes beside it and last: what fails there is a warning, and IPv4 is served by then. In a DHCP namespace
the proxy is bound to fe80::a9fe:a9fe before the address is there, so neither waits for the other.

Both can be repeated. A proxy that runs in this namespace, for this id, on this port is adopted, whoever
started it; any other one of this id is replaced, also one that is left in a namespace that was deleted
and made anew (its pid lives, but no guest reaches it).

In the modes SHARED and ONE_HOP the keeper listens there instead of a process (``Keeping``). From a process to the
keeper its listening socket is taken over before the process ends, and between those two modes the socket stays:
no guest is refused. Back to a process it is lent by the keeper's process and given to the new one, and let go of by the
keeper when that one has it. Where it cannot be lent it is closed first, and guests are refused for a second.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from metadata_wsgi.config import state_paths
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import dhcp_address, interface_state, link_local, namespaces, proxy_process
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.rules import Rule, rules_for
from metadata_wsgi.netns.runner import Runner
from metadata_wsgi.netns.target import NETWORK, NETWORK_PORT, PROCESS, ROUTER, Place

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proxy:
    """How to start a proxy: the program, and what it is told. ``socket`` '' is the program's own default."""

    program: str = 'quantum-ns-metadata-proxy'
    state_path: str = '/var/lib/quantum'
    socket: str = ''
    log_dir: str = ''

    def pid_file(self, uuid: str) -> str:
        """Where its pid is."""
        return state_paths.pid_file(self.state_path, uuid)

    def argv(self, place: Place, port: int, interface: str | None = None) -> list[str]:
        """The command line, as an L3 agent of Grizzly writes it; ``interface`` is a network's that gets IPv6 too."""
        words = [
            self.program,
            f'--pid_file={self.pid_file(place.uuid)}',
            f'--{place.kind}_id={place.uuid}',
            f'--state_path={self.state_path}',
            f'--metadata_port={port}',
        ]
        if self.socket:
            words.append(f'--metadata_proxy_socket={self.socket}')
        if place.kind == NETWORK:
            words.append(f'--metadata_host={dhcp_address.ADDRESS}')
            if interface:
                words.append(f'--metadata_host={interface_state.ADDRESS}%{interface}')
        if self.log_dir:
            words += [f'--log-file=quantum-ns-metadata-proxy-{place.uuid}.log', f'--log-dir={self.log_dir}']
        return words


class RuleKeeper(Protocol):
    """Keeps the rules of namespaces; :class:`metadata_wsgi.netns.iptables.Iptables` is the real one."""

    def apply(self, namespace: str, wanted: Sequence[Rule], *, families: Sequence[int]) -> bool:
        """Make ``wanted`` the rules of ours in the namespace."""


class Keeping(Protocol):
    """The keeper; :class:`metadata_wsgi.keeper.attachments_client.AttachmentsClient`. Raises NetnsError."""

    def attach(
        self, place: Place, mode: str, port: int, hosts: Sequence[str], taken: Sequence[socket.socket] = ()
    ) -> bool:
        """Have sockets opened there, or ``taken`` kept; whether anything changed."""

    def close(self, place: Place, mode: str, port: int, host: str) -> None:
        """Have one of them closed."""

    def detach(self, place: Place) -> bool:
        """Have all of them closed; whether there were any."""


class Attachments:
    """Attaches and detaches on this host. ``families``: 4 and 6, or what the kernel has if not given.

    Without ``keeping`` there is the mode PROCESS only. ``keeper_pid`` is whose sockets they are, None if not known.
    Threads may share it.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        proxy: Proxy,
        iptables: RuleKeeper | None = None,
        keeping: Keeping | None = None,
        keeper_pid: Callable[[], int | None] = lambda: None,
        families: Sequence[int] | None = None,
        start_within_s: float = 15.0,
        end_within_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._runner = runner
        self._proxy = proxy
        self._iptables = iptables or Iptables(runner)
        self._keeping = keeping
        self._keeper_pid = keeper_pid
        self._families = tuple(families or kernel_families())
        self._start_within_s = start_within_s
        self._end_within_s = end_within_s
        self._clock = clock
        self._sleep = sleep

    def attach(
        self,
        place: Place,
        *,
        mode: str = PROCESS,
        port: int = 9697,
        interfaces: str = 'qr-+',
        mark: str = '0x1/0xffff',
        interface: str | None = None,
        wait_for_ipv6: bool = True,
    ) -> bool:
        """Attach the path; True if somebody else serves it than before, False if it was served so already.

        ``mode`` is one of ``place.MODES``.
        ``port``, ``interfaces`` (internal ones) and ``mark`` are for routers; ``interface`` (which one gets the
        address) for networks. ``wait_for_ipv6``: until the kernel has checked its address, about 2 s; IPv4 is
        served meanwhile. Raises NetnsError when the namespace is missing or something refuses.
        """
        if not namespaces.exists(place.namespace):
            raise NetnsError(
                f'there is no namespace {place.namespace} on this host: is {place.kind} {place.uuid} here, '
                f'and is its agent running? "ip netns list" shows what there is; --namespace names another one'
            )
        if place.kind == ROUTER:
            wanted = rules_for(port=port, interfaces=interfaces, mark=mark, families=self._families)
            if self._iptables.apply(place.namespace, wanted, families=self._families):
                LOG.info('%s %s: rules were laid', place.kind, place.uuid)
        else:
            port = NETWORK_PORT
            if dhcp_address.add(place.namespace, interface):
                LOG.info('%s %s: %s was added', place.kind, place.uuid, dhcp_address.ADDRESS)
            interfaces = dhcp_address.where(place.namespace) or ''
        ipv6 = self._begin_ipv6(place, interfaces)
        changed = self._serve(place, mode, port, interfaces if ipv6 else None)
        if ipv6 and wait_for_ipv6:
            changed |= self._settle_ipv6(place, mode, interfaces, port, changed)
        return changed

    def settle(self, place: Place, *, mode: str, port: int = 9697, interfaces: str = 'qr-+') -> bool:
        """Wait for IPv6 where ``attach`` did not; whether somebody else serves the place now."""
        if place.kind == NETWORK:
            port, interfaces = NETWORK_PORT, dhcp_address.where(place.namespace) or ''
        if not self._has_interface_for_ipv6(place, interfaces):
            return False
        return self._settle_ipv6(place, mode, interfaces, port, started=False)

    def detach(self, place: Place) -> bool:
        """Remove rules or address, end who serves it; whether there was anything. The namespace may be gone already."""
        there = False
        if namespaces.exists(place.namespace):
            there |= self._iptables.apply(place.namespace, (), families=self._families)
            if place.kind == NETWORK:
                there |= dhcp_address.remove(place.namespace)
            if set(interface_state.names(place.namespace)) - {'lo'}:
                with interface_state.opened(place.namespace) as opened:
                    there |= link_local.remove(opened)
        try:
            if self._keeping:
                there |= self._keeping.detach(place)
        finally:
            # Also where the keeper is away and cannot be told.
            there |= self._end_process(place)
        return there

    def _serve(self, place: Place, mode: str, port: int, interface: str | None) -> bool:
        if mode == PROCESS:
            if self._hand_over(place, port, interface):
                return True
            self._let_go(place)
            return self._start(place, port, interface)
        if self._keeping is None:
            raise NetnsError(f'mode {mode} needs the keeper')
        taken = proxy_process.take(self._proxy.pid_file(place.uuid), place.uuid, port)
        try:
            changed = self._keeping.attach(place, mode, port, _hosts(place, interface), _here(place, taken))
        finally:
            for one in taken:
                one.close()
        if changed:
            LOG.info('%s %s: the keeper has it served in mode %s', place.kind, place.uuid, mode)
        return changed | self._end_process(place)

    def _hand_over(self, place: Place, port: int, interface: str | None) -> bool:
        """Start a process on the keeper's own sockets, so that they are never closed; whether that could be."""
        keeper = self._keeper_pid()
        lent = proxy_process.borrow(keeper, place.namespace, port) if keeper else []
        try:
            if not lent or len(lent) != len(_hosts(place, interface)):
                return False
            started = self._start(place, port, interface, lent)
        except NetnsError as error:
            # Another program than ours may not know the option.
            LOG.warning('%s %s: started anew, guests are refused meanwhile: %s', place.kind, place.uuid, error)
            self._end_process(place)
            return False
        finally:
            for one in lent:
                one.close()
        self._let_go(place)
        return started

    def _let_go(self, place: Place) -> None:
        try:
            if self._keeping:
                self._keeping.detach(place)
        except NetnsError as error:
            # Whether it kept anything here is not known; if it did, the port is not free, and the process says so.
            LOG.warning('%s %s: %s', place.kind, place.uuid, error)

    def _end_process(self, place: Place) -> bool:
        return proxy_process.disable(self._proxy.pid_file(place.uuid), place.uuid, patience_s=self._end_within_s)

    def _has_interface_for_ipv6(self, place: Place, interfaces: str) -> bool:
        return 6 in self._families and any(
            link_local.matches(interfaces, name) for name in interface_state.names(place.namespace)
        )

    def _begin_ipv6(self, place: Place, interfaces: str) -> bool:
        if not self._has_interface_for_ipv6(place, interfaces):
            return False
        try:
            with interface_state.opened(place.namespace) as opened:
                link_local.begin(opened, interfaces)
        except NetnsError as error:
            LOG.warning('%s %s is attached without IPv6: %s', place.kind, place.uuid, error)
            return False
        return True

    def _settle_ipv6(self, place: Place, mode: str, interfaces: str, port: int, started: bool) -> bool:
        """Wait for IPv6; whether the proxy was replaced, because it did not serve the address."""
        try:
            with interface_state.opened(place.namespace) as opened:
                for sentence in link_local.settle(opened, interfaces, clock=self._clock, sleep=self._sleep):
                    LOG.warning('%s %s: %s', place.kind, place.uuid, sentence)
                unserved = [found for found in link_local.usable(opened, interfaces) if opened.refuses(found, port)]
        except NetnsError as error:
            LOG.warning('%s %s is attached without IPv6: %s', place.kind, place.uuid, error)
            return False
        if not unserved:
            return False
        if started:
            LOG.warning(
                '%s %s: its proxy does not serve %s; its log says why', place.kind, place.uuid, interface_state.ADDRESS
            )
            return False
        # It was started without it, or for an interface of that name that has been replaced.
        if mode == PROCESS:
            self._end_process(place)
        elif self._keeping and place.kind == NETWORK:
            self._keeping.close(place, mode, port, f'{interface_state.ADDRESS}%{interfaces}')
        return self._serve(place, mode, port, interfaces)

    def _start(self, place: Place, port: int, interface: str | None, lent: Sequence[socket.socket] = ()) -> bool:
        def serves(pid: int) -> bool:
            return namespaces.name_of(pid) == place.namespace and proxy_process.listens(pid, port)

        def spawn(_pid_file: str) -> None:
            argv, descriptors = self._proxy.argv(place, port, interface), [one.fileno() for one in lent]
            if descriptors:
                argv += [f'--listen_fd={number}' for number in descriptors]
                self._runner(argv, namespace=place.namespace, hand=descriptors)
            else:
                self._runner(argv, namespace=place.namespace)

        pid_file = self._proxy.pid_file(place.uuid)
        started = proxy_process.enable(pid_file, place.uuid, spawn, wanted=serves)
        give_up_s = self._clock() + self._start_within_s
        while started:
            pid = proxy_process.active(pid_file, place.uuid)
            if pid is not None and serves(pid):
                break
            if self._clock() >= give_up_s:
                state = f'pid {pid} does not listen on port {port}' if pid else f'no process, pid file {pid_file}'
                raise NetnsError(
                    f'{self._proxy.program} for {place.kind} {place.uuid} is not there after '
                    f'{self._start_within_s:g} s ({state}); its log says why'
                )
            self._sleep(0.02)
        if started:
            LOG.info('%s %s: a proxy was started', place.kind, place.uuid)
        return started


def _hosts(place: Place, interface: str | None) -> list[str]:
    """Where the keeper listens: as a proxy that is started by ``Proxy.argv``."""
    if place.kind == ROUTER:
        return ['']
    return [dhcp_address.ADDRESS, *([f'{interface_state.ADDRESS}%{interface}'] if interface else [])]


def _here(place: Place, taken: Sequence[socket.socket]) -> list[socket.socket]:
    """Those that are in the namespace that has the name now."""
    return [one for one in taken if namespaces.identity_of(one) == namespaces.identity(place.namespace)]


def kernel_families() -> tuple[int, ...]:
    """4, and 6 unless IPv6 is switched off in this kernel: then its rules cannot be, and need not be, there."""
    return (4, 6) if os.path.exists('/proc/net/if_inet6') else (4,)
