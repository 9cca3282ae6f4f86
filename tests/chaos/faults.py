# SPDX-License-Identifier: Apache-2.0
"""The table of faults: how each is injected and repaired, in which setups, and what an instance may notice.

What is not in ``Fault.allows`` breaks the contract: every request gets its own instance's metadata, and while a fault
lasts longer than the deadline of a request, 503 with ``Retry-After``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos import peer
from tests.chaos.host import AGENT, KEEPER, MODES, ONE_HOP, PROCESS, PROXY, SHARED, WATCH, Host, faketime_library
from tests.chaos.load import CUT, NO_ROUTE, REFUSED, TIMED_OUT
from tests.chaos.peer import PeerHost
from tests.chaos.services import KEYSTONE, MEMCACHED, NEUTRON, NOVA
from tests.chaos.topology import SERVICES_LINK, ip

Action = Callable[[Host], object]

CACHED, FAKETIME = 'shared, lookup_cache', 'shared, libfaketime'
SETUPS = (*MODES, CACHED, FAKETIME)
PEER = "haproxy and Neutron's agent"


@dataclass(frozen=True)
class Allows:
    """What instances may notice beside ``503 with Retry-After`` of a fault that outlasts the deadline.

    ``outcomes`` and ``after_deadline`` are prefixes of outcomes; the second only where the fault outlasts the deadline.
    Only instances behind the first router may notice them if ``first_router_only``; ``outcomes`` at most once for each
    instance and injection if ``once``.
    """

    outcomes: tuple[str, ...] = ()
    after_deadline: tuple[str, ...] = ()
    first_router_only: bool = False
    once: bool = False
    why: str = ''


NOTHING = Allows()
FRONT_IS_GONE = Allows(
    (CUT,), (TIMED_OUT,), once=True,
    why='The process that had accepted the connection is gone; no process accepts until it is started again',
)  # fmt: skip
FRONT_RESTARTS = Allows((), (TIMED_OUT,), why='No process accepts until it is started again')
FRONT_OF_ROUTER_IS_GONE = Allows((CUT, REFUSED, TIMED_OUT), first_router_only=True, why='Its only process is gone')
FROZEN = Allows((), (TIMED_OUT,), why='The process that accepted the connection cannot respond')
FROZEN_OF_ROUTER = Allows((), (TIMED_OUT,), first_router_only=True, why=FROZEN.why)
ROUTER_IS_AWAY = Allows(
    (CUT, REFUSED, TIMED_OUT, NO_ROUTE), first_router_only=True, why='The instance has no path to the router'
)
NOVAS_STATUS = Allows((), ('status 500', 'status 503'), why="Nova's own response is relayed at the deadline")


@dataclass(frozen=True)
class Fault:
    """``inject`` is called once, or every ``every_s`` seconds; ``repair`` at the end.

    Without ``repair`` the host repairs itself, and the time to recover counts from the last injection. ``missing`` is
    the reason why this machine cannot have the fault.
    """

    name: str
    inject: Action
    repair: Action | None = None
    setups: Sequence[str] = MODES
    every_s: float = 0.0
    allows: Allows = NOTHING
    missing: Callable[[], str] = lambda: ''


# --- Processes -------------------------------------------------------------------------------------------------------


def _kill(name: str) -> Action:
    return lambda host: host.units[name].kill(signal.SIGKILL)


def _kill_worker(name: str) -> Action:
    """One worker, another one each time."""

    def kill(host: Host) -> None:
        for pid in host.units[name].children()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return kill


def _signal_worker(name: str, number: int) -> Action:
    def send(host: Host) -> None:
        for pid in host.units[name].children()[: None if number == signal.SIGCONT else 1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    return send


def _signal(name: str, number: int) -> Action:
    return lambda host: host.units[name].kill(number)


def _signal_router_process(number: int) -> Action:
    """To the first router's holder (mode shared) or namespace proxy (mode process)."""

    def send(host: Host) -> None:
        if pid := host.pid_of(host.routers[0]):
            os.kill(pid, number)

    return send


def _restart(*names: str) -> Action:
    def restart(host: Host) -> None:
        for name in names:
            host.units[name].restart()

    return restart


def _kill_together(*names: str) -> Action:
    def kill(host: Host) -> None:
        for name in names:
            host.units[name].kill(signal.SIGKILL)

    return kill


def _upgrade(host: Host) -> None:
    """As the packages do after an installation: the version is the same one here (tests/packages has two)."""
    for name in (AGENT, PROXY):
        if name in host.units:
            host.units[name].kill(signal.SIGUSR1)
    if KEEPER in host.units:
        host.units[KEEPER].restart()


def _processes() -> Iterator[Fault]:
    for setups, agent_killed, agent_frozen in (
        ((SHARED, PROCESS), NOTHING, NOTHING),
        ((ONE_HOP,), FRONT_IS_GONE, FROZEN),
    ):
        yield Fault('SIGKILL agent master', _kill(AGENT), setups=setups, every_s=15, allows=agent_killed)
        yield Fault('SIGKILL agent worker', _kill_worker(AGENT), setups=setups, every_s=6, allows=agent_killed)
        yield Fault(
            'SIGSTOP agent worker', _signal_worker(AGENT, signal.SIGSTOP), _signal_worker(AGENT, signal.SIGCONT),
            setups=setups, allows=agent_frozen,
        )  # fmt: skip
    yield Fault('SIGSTOP agent master', _signal(AGENT, signal.SIGSTOP), _signal(AGENT, signal.SIGCONT))
    yield Fault('reload agent in a loop', _signal(AGENT, signal.SIGHUP), every_s=1)
    yield Fault('restart agent', _restart(AGENT), setups=(SHARED, PROCESS), every_s=15)
    yield Fault('restart agent', _restart(AGENT), setups=(ONE_HOP,), every_s=15, allows=FRONT_RESTARTS)
    shared, kept = (SHARED,), (SHARED, ONE_HOP)
    yield Fault('SIGKILL proxy master', _kill(PROXY), setups=shared, every_s=15, allows=FRONT_IS_GONE)
    yield Fault('SIGKILL proxy worker', _kill_worker(PROXY), setups=shared, every_s=6, allows=FRONT_IS_GONE)
    yield Fault(
        'SIGSTOP proxy worker', _signal_worker(PROXY, signal.SIGSTOP), _signal_worker(PROXY, signal.SIGCONT),
        setups=shared, allows=FROZEN,
    )  # fmt: skip
    yield Fault('SIGSTOP proxy master', _signal(PROXY, signal.SIGSTOP), _signal(PROXY, signal.SIGCONT), setups=shared)
    yield Fault('reload proxy in a loop', _signal(PROXY, signal.SIGHUP), setups=shared, every_s=1)
    yield Fault('restart proxy', _restart(PROXY), setups=shared, every_s=15, allows=FRONT_RESTARTS)
    yield Fault('SIGKILL keeper', _kill(KEEPER), setups=kept, every_s=5)
    yield Fault('SIGSTOP keeper', _signal(KEEPER, signal.SIGSTOP), _signal(KEEPER, signal.SIGCONT), setups=kept)
    yield Fault('restart keeper', _restart(KEEPER), setups=kept, every_s=5)
    yield Fault(
        'SIGKILL keeper and proxy', _kill_together(KEEPER, PROXY), setups=shared, every_s=15, allows=FRONT_IS_GONE
    )
    yield Fault('SIGKILL keeper and agent', _kill_together(KEEPER, AGENT), setups=(ONE_HOP,), every_s=15,
                allows=FRONT_IS_GONE)  # fmt: skip
    yield Fault('restart everything', _restart(KEEPER, PROXY, AGENT, WATCH), setups=shared, every_s=15,
                allows=FRONT_RESTARTS)  # fmt: skip
    yield Fault('upgrade of all programs', _upgrade, every_s=15)
    yield Fault('SIGKILL holder', _signal_router_process(signal.SIGKILL), setups=shared)
    yield Fault('SIGKILL proxy of one router', _signal_router_process(signal.SIGKILL), setups=(PROCESS,), every_s=10,
                allows=FRONT_OF_ROUTER_IS_GONE)  # fmt: skip
    yield Fault('SIGSTOP proxy master of one router', _signal_router_process(signal.SIGSTOP),
                _signal_router_process(signal.SIGCONT), setups=(PROCESS,), allows=FROZEN_OF_ROUTER)  # fmt: skip
    yield Fault('SIGKILL watch', _kill(WATCH), every_s=3)


# --- Services --------------------------------------------------------------------------------------------------------


def _set_fault(service: str, fault: str) -> Action:
    def inject(host: Host) -> None:
        if service == KEYSTONE:
            host.services.revoke_tokens()
        host.services.set_fault(service, fault)

    return inject


def _end_fault(service: str) -> Action:
    return lambda host: host.services.set_fault(service, 'none')


def _force(service: str, status: int, body: str = 'injected') -> Action:
    def inject(host: Host) -> None:
        if service == KEYSTONE:
            host.services.revoke_tokens()
        host.services.force(service, status, body)

    return inject


SERVICE_FAULTS = ('down', 'hanging', 'slow', 'trickling', 'flapping', 'resetting', 'garbage', 'cutting')


def _services() -> Iterator[Fault]:
    for service in (KEYSTONE, NEUTRON, NOVA, MEMCACHED):
        setups = (CACHED,) if service == MEMCACHED else MODES
        for fault in SERVICE_FAULTS:
            yield Fault(f'{service} {fault}', _set_fault(service, fault), _end_fault(service), setups=setups)
    for service in (KEYSTONE, NEUTRON):
        yield Fault(f'{service} responds 500', _force(service, 500), _force(service, 0))
        yield Fault(f'{service} responds 200 with HTML', _force(service, 200, '<html>'), _force(service, 0))
    yield Fault('Nova responds 500', _force(NOVA, 500), _force(NOVA, 0), allows=NOVAS_STATUS)
    yield Fault('Nova responds 503', _force(NOVA, 503), _force(NOVA, 0),
                allows=NOVAS_STATUS)  # fmt: skip


# --- Network ---------------------------------------------------------------------------------------------------------


def _run(*words: str) -> Action:
    return lambda host: subprocess.run(words, check=True, capture_output=True)


def _drop(chain: str, *match: str) -> tuple[Action, Action]:
    """Drop packets of the services, as a firewall does."""
    return _run('iptables', '-I', chain, *match, '-j', 'DROP'), _run('iptables', '-D', chain, *match, '-j', 'DROP')


def _has_netem() -> str:
    done = subprocess.run(['tc', 'qdisc', 'add', 'dev', 'lo', 'root', 'netem', 'delay', '0ms'], capture_output=True,
                          check=False)  # fmt: skip
    if done.returncode:
        return 'the kernel has no netem'
    subprocess.run(['tc', 'qdisc', 'del', 'dev', 'lo', 'root'], check=True)
    return ''


has_netem = functools.cache(_has_netem)


def _netem(*words: str) -> tuple[Action, Action]:
    """On the link of the first router to its instances."""

    def inject(host: Host) -> None:
        router = host.routers[0]
        ip('netns', 'exec', router.namespace, 'tc', 'qdisc', 'add', 'dev', router.interface, 'root', 'netem', *words)

    def repair(host: Host) -> None:
        router = host.routers[0]
        ip('netns', 'exec', router.namespace, 'tc', 'qdisc', 'del', 'dev', router.interface, 'root')

    return inject, repair


def _flush_rules(host: Host) -> None:
    for table in ('nat', 'mangle', 'filter'):
        ip('netns', 'exec', host.routers[0].namespace, 'iptables', '-t', table, '-F')


def _recreate_namespace(host: Host) -> None:
    host.routers[0].delete()
    host.routers[0].make()


def _link(state: str) -> Action:
    def change(host: Host) -> None:
        router = host.routers[0]
        ip('-n', router.namespace, 'link', 'set', router.interface, state)

    return change


def _network() -> Iterator[Fault]:
    to_services = ('-o', SERVICES_LINK)
    lossy = ('-m', 'statistic', '--mode', 'random', '--probability', '0.1')
    yield Fault('packets to the services dropped', *_drop('OUTPUT', *to_services))
    yield Fault('10 % of the packets to the services dropped', *_drop('OUTPUT', *to_services, *lossy))
    yield Fault('netem on the link of one router: 100 ms, 10 % loss', *_netem('delay', '100ms', '50ms', 'loss', '10%'),
                missing=has_netem)  # fmt: skip
    yield Fault('interface of one router down', _link('down'), _link('up'), allows=ROUTER_IS_AWAY)
    yield Fault('rules of one router flushed', _flush_rules, allows=ROUTER_IS_AWAY)
    yield Fault('namespace of one router deleted and made anew', _recreate_namespace, allows=ROUTER_IS_AWAY)


# --- Resources -------------------------------------------------------------------------------------------------------


FILLER = 'filler'


def _fill_disks(host: Host) -> None:
    for directory in host.file_systems:
        with contextlib.suppress(OSError), (directory / FILLER).open('wb', buffering=0) as filler:
            while filler.write(b'0' * 4096):
                pass


def _empty_disks(host: Host) -> None:
    for directory in host.file_systems:
        (directory / FILLER).unlink(missing_ok=True)


def _remount(how: str) -> Action:
    def remount(host: Host) -> None:
        command = ['mount', '-o', f'remount,{how}', str(host.state_path)]
        # The kernel refuses while a file there is open for writing, as a lock or a pid file is for a moment.
        host.wait_until(lambda: not subprocess.run(command, check=False, capture_output=True).returncode, 'busy')

    return remount


def _limit(limit: int, name: str, spare: Callable[[int], int]) -> tuple[Action, Action]:
    """Lower a resource limit of a program and its workers to what ``spare(pid)`` says; give it back."""
    former: dict[int, tuple[int, int]] = {}

    def inject(host: Host) -> None:
        unit = host.units[name]
        for pid in (unit.pid, *unit.children()):
            with contextlib.suppress(OSError):
                _, hard = former[pid] = resource.prlimit(pid, limit)
                resource.prlimit(pid, limit, (spare(pid), hard))

    def repair(host: Host) -> None:
        for pid, limits in former.items():
            with contextlib.suppress(OSError):
                resource.prlimit(pid, limit, limits)
        former.clear()

    return inject, repair


def _used_descriptors(pid: int) -> int:
    """The limit that leaves only the numbers that are free between those in use."""
    return max(int(name) for name in os.listdir(f'/proc/{pid}/fd')) + 1


def _used_memory(pid: int) -> int:
    """The address space in use and 256 KiB."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[0]) * resource.getpagesize() + (256 << 10)


def _resources() -> Iterator[Fault]:
    yield Fault('state and log directory full', _fill_disks, _empty_disks)
    kept = (SHARED, ONE_HOP)
    # In mode process each namespace proxy has its pid file open.
    yield Fault('state directory read-only', _remount('ro'), _remount('rw'), setups=kept)
    for name, setups in ((AGENT, MODES), (PROXY, (SHARED,)), (KEEPER, kept)):
        yield Fault(f'descriptors of the {name} used up', *_limit(resource.RLIMIT_NOFILE, name, _used_descriptors),
                    setups=setups)  # fmt: skip
        yield Fault(f'memory of the {name} used up', *_limit(resource.RLIMIT_AS, name, _used_memory), setups=setups)


# --- Clock -----------------------------------------------------------------------------------------------------------


def _set_clock(offset: str) -> Action:
    return lambda host: host.set_clock(offset)


def _clock() -> Iterator[Fault]:
    for offset, name in (('+1d', 'a day ahead'), ('-1d', 'a day back')):
        yield Fault(f'clock of the agent {name}', _set_clock(offset), _set_clock('+0'),
                    setups=(FAKETIME,))  # fmt: skip


PEER_FAULTS = (
    'SIGKILL agent master', 'SIGKILL agent worker', 'restart agent', 'Nova down', 'Nova hanging', 'Nova slow',
    'Nova flapping', 'Nova resetting', 'Nova garbage', 'Nova cutting', 'Nova responds 500', 'Nova responds 503',
    'packets to the services dropped',
)  # fmt: skip
ANYTHING = Allows(('',), why='The peer has no contract')


def _of_peer(faults: Sequence[Fault]) -> Iterator[Fault]:
    for name in PEER_FAULTS:
        fault = next(fault for fault in faults if fault.name == name and SHARED in fault.setups)
        yield replace(fault, setups=(PEER,), allows=ANYTHING)


def make_host(setup: str, directory: Path) -> Host:
    """A host of one of ``SETUPS``, or the peer; not started."""
    if setup == PEER:
        return PeerHost(directory)
    mode = setup if setup in MODES else SHARED
    return Host(directory, mode, cached=setup == CACHED, fake_clock=setup == FAKETIME)


def missing(setup: str) -> str:
    """Why this machine cannot have a setup; '' if it can."""
    if setup == FAKETIME and not faketime_library():
        return 'libfaketime is not installed (the package faketime)'
    return peer.missing() if setup == PEER else ''


FAULTS: tuple[Fault, ...] = (*_processes(), *_services(), *_network(), *_resources(), *_clock())
FAULTS += tuple(_of_peer(FAULTS))
