#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where the slowest requests of mode ``shared`` wait: a trace of the namespace proxy, the agent and Nova.

    python benchmarks/slow_requests.py [--connections 64] [--seconds 3] [--no-trace] [--save FILE]

Needs root, wrk, haproxy, and tracefs. Does not work in a pid namespace, because the trace has the pids of the machine.
wrk sends requests, each on a new connection. The kernel records (ftrace) when a connection to the namespace proxy
becomes ESTABLISHED, and the system calls accept4, connect, recvfrom and sendto of the three programs, without their
data. Compare with ``--no-trace`` to see what the trace costs. The stages of a request are found from the order of these
events:

- A listener's connections are accepted in the order in which they were opened. So the n-th accepted connection is the
  n-th connection that became ESTABLISHED (namespace proxy), or for which connect() was called (agent, Nova).
- A program reads the response of the next program, and writes its own response before it reads anything else. So a
  response belongs to the connection on which the program received data last.

The third stage includes the wait for a concurrency slot of the client. A new connection to the agent is accepted in the
fourth stage.

A sendto counts from its start, the other calls count from their end. A request is left out if the trace does not have
all of its stages, or one of them is negative. That happens if other programs accept connections on the port 9697 of the
same machine at the same time: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import machine
from testbed import PORT, URL, Testbed, TestbedError

HERE = Path(__file__).resolve().parent
TRACEFS = Path('/sys/kernel/tracing')
BUFFER_KIB = 1 << 16
"""Size of the kernel's buffer for each processor: about 10 s."""
GUEST = '10.1.0.2'
"""The address from which wrk sends."""
PROGRAMS = ('wrk', 'haproxy', 'curl', 'ip', 'iptables', 'nsenter', 'perl')
PROXY, AGENT, NOVA = 'namespace proxy', 'agent', 'nova'
NEXT = {PROXY: AGENT, AGENT: NOVA}
COMMANDS = ('quantum-ns-meta', 'quantum-metadat', 'haproxy')
"""The programs' names in /proc/PID/comm, which has 15 characters."""
STAGES = (
    'in the accept queue of the namespace proxy',
    'namespace proxy: from accept to the request',
    "namespace proxy: from the client's request to the request to the agent",
    'until the agent has read the request',
    "agent: from the proxy's request to the request to Nova",
    'until Nova has read the request',
    'Nova',
    'until the agent has read the response of Nova',
    'agent: from the response of Nova to the response to the proxy',
    'until the namespace proxy has read the response of the agent',
    'namespace proxy: from the response of the agent to the response to the client',
)
_EVENT = re.compile(
    r'-(?P<pid>\d+) +\[\d+\] \S+ +(?P<time>[\d.]+): (?:'
    r'sys_(?P<entered>\w+)\(fd: (?P<fd>\w+)(?:.* addrlen: (?P<length>\w+))?'
    r'|sys_(?P<left>\w+) -> (?P<result>\w+)'
    # wrk, and the testbed, which checks whether the port accepts connections
    rf'|inet_sock_set_state: .* daddr=(?:{re.escape(GUEST)}|127\.0\.0\.1) )'
)


@dataclass
class Exchange:
    """A request and its response in one program. Times in s. ``sent_s`` and ``answered_s``: of the next program."""

    opened_s: float
    accepted_s: float
    received_s: float
    is_first: bool
    """Whether it is the first request of its connection."""
    sent_s: float | None = None
    answered_s: float | None = None
    responded_s: float | None = None
    inner: Exchange | None = None
    """The same request in the next program."""


@dataclass
class Outgoing:
    """A connection to the next program, at the side that opened it."""

    opened_s: float
    sent_s: float | None = None
    answered_s: float | None = None
    other_side: Incoming | None = None


@dataclass
class Incoming:
    """An accepted connection, and the last request on it."""

    opened_s: float
    accepted_s: float
    last: Exchange | None = None


@dataclass
class Trace:
    """Reads the lines of a trace.

    ``programs``: the names of the programs by pid. ``address_lengths``: by name, the length of the address to which the
    program connects. It distinguishes the namespace proxy's connections to the agent from those to the keeper.
    """

    programs: dict[int, str]
    address_lengths: dict[str, int]
    exchanges: list[Exchange] = field(default_factory=list)
    """The requests to the namespace proxy that got a response."""

    def __post_init__(self) -> None:
        self._queues: dict[str, deque[Outgoing]] = {PROXY: deque(), AGENT: deque(), NOVA: deque()}
        # By pid and file descriptor.
        self._incoming: dict[tuple[int, int], Incoming] = {}
        self._outgoing: dict[tuple[int, int], Outgoing] = {}
        # By pid: the descriptor of the system call in progress, and the connection of the last response.
        self._fd: dict[int, int] = {}
        self._answered: dict[int, Outgoing] = {}

    def read(self, lines: Iterable[str]) -> None:
        """Read the text of the kernel's file ``trace``."""
        for line in lines:
            if not (event := _EVENT.search(line)):
                continue
            pid, time_s = int(event['pid']), float(event['time'])
            if event['entered'] and pid in self.programs:
                self._fd[pid] = int(event['fd'], 16)
                if event['entered'] == 'sendto':
                    self._send(pid, time_s)
                elif event['entered'] == 'connect' and int(event['length'], 16) == self._length(pid):
                    self._connect(pid, time_s)
            elif event['left'] and pid in self.programs and (result := int(event['result'], 16)) < 1 << 31:
                self._leave(event['left'], pid, result, time_s)
            elif not event['entered'] and not event['left']:
                self._queues[PROXY].append(Outgoing(time_s))

    def _length(self, pid: int) -> int:
        return self.address_lengths[self.programs[pid]]

    def _connect(self, pid: int, time_s: float) -> None:
        key = pid, self._fd[pid]
        last = self._outgoing.get(key)
        if last is None or last.sent_s is not None:  # otherwise connect() is called again for the same connection
            self._outgoing[key] = connection = Outgoing(time_s)
            self._queues[NEXT[self.programs[pid]]].append(connection)
            self._incoming.pop(key, None)

    def _send(self, pid: int, time_s: float) -> None:
        key = pid, self._fd[pid]
        if key in self._outgoing:
            self._outgoing[key].sent_s = time_s
        elif key in self._incoming:
            exchange = self._incoming[key].last
            if exchange is not None and exchange.responded_s is None:
                self._respond(exchange, pid, time_s)

    def _respond(self, exchange: Exchange, pid: int, time_s: float) -> None:
        exchange.responded_s = time_s
        if answered := self._answered.pop(pid, None):
            exchange.sent_s, exchange.answered_s = answered.sent_s, answered.answered_s
            exchange.inner = answered.other_side.last if answered.other_side else None
        if self.programs[pid] == PROXY:
            self.exchanges.append(exchange)

    def _leave(self, call: str, pid: int, result: int, time_s: float) -> None:
        if call == 'accept4':
            queue = self._queues[self.programs[pid]]
            # Empty only if the event of the other side is later: both run at the same time.
            outgoing = queue.popleft() if queue else Outgoing(time_s)
            outgoing.other_side = self._incoming[pid, result] = Incoming(outgoing.opened_s, time_s)
            self._outgoing.pop((pid, result), None)
        elif call == 'recvfrom' and result:
            key = pid, self._fd.get(pid, -1)
            if key in self._incoming:
                connection = self._incoming[key]
                last = connection.last
                if last is None or last.responded_s is not None:
                    connection.last = Exchange(connection.opened_s, connection.accepted_s, time_s, last is None)
            elif key in self._outgoing:
                self._outgoing[key].answered_s = time_s
                self._answered[pid] = self._outgoing[key]


def stages_ms(exchange: Exchange) -> list[float] | None:
    """The duration of each of STAGES; None if one of them is not in the trace, or a connection was confused."""
    agent = exchange.inner
    nova = agent.inner if agent else None
    if agent is None or nova is None:
        return None
    times = [
        *(exchange.opened_s, exchange.accepted_s, exchange.received_s, exchange.sent_s),
        *(agent.received_s, agent.sent_s, nova.received_s, nova.responded_s, agent.answered_s, agent.responded_s),
        *(exchange.answered_s, exchange.responded_s),
    ]
    known = [time_s for time_s in times if time_s is not None]
    stages = [1000 * (end - begin) for begin, end in pairwise(known)]
    # Events of two processors may be in the wrong order by some microseconds.
    return stages if len(known) == len(times) and min(stages) > -0.1 else None


def table(exchanges: list[Exchange]) -> str:
    """The stages of all requests and of the slowest 1 %, in Markdown."""
    found = [(exchange, stages) for exchange in exchanges if (stages := stages_ms(exchange))]
    if not found:
        raise SystemExit('the trace has no complete request')
    found.sort(key=lambda one: sum(one[1]))
    parts = (found, found[-max(1, len(found) // 100) :])
    in_proxy = _counter((one.opened_s, one.responded_s) for one, _ in found)
    in_agent = _counter((one.sent_s, one.answered_s) for one, _ in found)
    columns = [
        [
            *(f'{statistics.mean(stage):.2f}' for stage in zip(*(stages for _, stages in part), strict=True)),
            f'{statistics.mean(sum(stages) for _, stages in part):.2f}',
            *(f'{statistics.mean(count(one.opened_s) for one, _ in part):.1f}' for count in (in_proxy, in_agent)),
            f'{statistics.mean(one.inner is not None and one.inner.is_first for one, _ in part):.1%}',
        ]
        for part in parts
    ]
    names = [*STAGES, 'all stages']
    names += [f'requests in progress in the {name}, when the connection is opened' for name in (PROXY, AGENT)]
    names += ['requests that need a new connection to the agent']
    rows = (f'| {" | ".join(row)} |' for row in zip(names, *columns, strict=True))
    return '\n'.join([
        '| Mean of each stage, ms | All requests | Slowest 1 % |',
        '|---|---|---|',
        *rows,
        '',
        f'{len(found)} requests, 99 % within {sum(parts[1][0][1]):.2f} ms; {len(exchanges) - len(found)} are left out.',
    ])  # fmt: skip


def _counter(spans: Iterable[tuple[float | None, float | None]]) -> Callable[[float], int]:
    """A function of a time: how many of the spans include it."""
    begins, ends = (sorted(time_s for time_s in times if time_s) for times in zip(*spans, strict=True))
    return lambda time_s: bisect_right(begins, time_s) - bisect_right(ends, time_s)


@contextmanager
def tracing() -> Iterator[Path]:
    """Record the events. Yields the directory of the trace."""
    directory = TRACEFS / 'instances' / f'slow-requests-{os.getpid()}'
    directory.mkdir()
    write = lambda name, value: (directory / name).write_text(value)  # noqa: E731
    try:
        write('buffer_size_kb', str(BUFFER_KIB))
        write('trace_clock', 'mono')
        write('events/syscalls/filter', ' || '.join(f'comm == "{name}"' for name in COMMANDS))
        write('events/sock/inet_sock_set_state/filter', f'sport == {PORT} && newstate == 1')
        for event in ('enter_connect', 'exit_accept4', 'enter_recvfrom', 'exit_recvfrom', 'enter_sendto'):
            write(f'events/syscalls/sys_{event}/enable', '1')
        write('events/sock/inet_sock_set_state/enable', '1')
        yield directory
    finally:
        with suppress(OSError):
            write('events/enable', '0')
        directory.rmdir()


def check_machine() -> None:
    """Exit with the reason if a trace is not possible here."""
    if os.geteuid():
        raise SystemExit('run it as root: it makes network namespaces and reads the trace of the kernel')
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        raise SystemExit(f'install {", ".join(missing)} first')
    if not (TRACEFS / 'instances').is_dir():
        raise SystemExit(f'{TRACEFS} is empty: mount -t tracefs tracefs {TRACEFS}')
    if not (TRACEFS / 'events/syscalls/sys_enter_recvfrom').is_dir():
        raise SystemExit('this kernel cannot trace system calls: it needs CONFIG_FTRACE_SYSCALLS')
    # The inode number of the first pid namespace is a constant of the kernel (PROC_PID_INIT_INO).
    if os.stat('/proc/self/ns/pid').st_ino != 0xEFFFFFFC:
        raise SystemExit('run it outside of a pid namespace: the trace has the pids of the machine')


def load(testbed: Testbed, connections: int, seconds: float) -> float:
    """Send requests, and print wrk's result and how long each program ran. Returns the start (time.monotonic())."""
    pids = programs(testbed)
    began_s = time.monotonic()
    before = {pid: _scheduled_s(pid) for pid in pids}
    argv = ['wrk', '-t1', f'-c{connections}', f'-d{seconds:g}s', '--timeout', '20s', '-s', str(HERE / 'steady.lua')]
    done = subprocess.run(
        [*testbed.in_guests(), *argv, '-H', 'Connection: close', URL], capture_output=True, text=True, check=True,
        timeout=seconds + 60,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    print(f'wrk: {found["requests"] / found["seconds"]:.0f} requests/s, median {found["p50_ms"]:.2f} ms, '
          f'99 % within {found["p99_ms"]:.2f} ms, failed {found["refused"] + found["broken"]}')  # fmt: skip
    for pid, name in pids.items():
        ran_s, waited_s = (after - began for after, began in zip(_scheduled_s(pid), before[pid], strict=True))
        if ran_s > 0.05 * found['seconds']:
            print(f'    {name}: ran {ran_s / found["seconds"]:.0%} of the time, '
                  f'was ready and waited for a processor {waited_s / found["seconds"]:.0%}')  # fmt: skip
    return began_s


def programs(testbed: Testbed) -> dict[int, str]:
    """The names of the testbed's programs by pid, masters included."""
    found: dict[int, str] = {}
    for file, name in (('agent-0', AGENT), ('ns-shared', PROXY)):
        pid = int((testbed.state / 'pids' / f'{file}.pid').read_text())
        found |= dict.fromkeys(machine.family([pid]), name)
    return found | dict.fromkeys(testbed.nova_pids(), NOVA)


def _scheduled_s(pid: int) -> list[float]:
    """Seconds on a processor, and seconds of waiting for one."""
    return [int(word) / 1e9 for word in Path(f'/proc/{pid}/schedstat').read_text().split()[:2]]


def main() -> None:
    """Run the load and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--connections', type=int, default=64, help='connections at a time')
    parser.add_argument('--seconds', type=float, default=3)
    parser.add_argument('--no-trace', action='store_true', help='only the load')
    parser.add_argument('--save', type=Path, help='write the trace to this file, too')
    options = parser.parse_args()
    check_machine()
    os.environ.setdefault('METADATA_WSGI_BIN', str(Path(sys.executable).parent))
    # SIGTERM raises SystemExit, so that the trace, the namespaces and their processes are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with Testbed('two_hop') as testbed:
            # From the start: the trace must have every connection, also those that the programs make when they start.
            with nullcontext() if options.no_trace else tracing() as trace:
                testbed.start_agent()
                testbed.attach(testbed.routers)
                testbed.wait_until_responding()
                load(testbed, 4, 1)  # the first requests of a process are slower
                began_s = load(testbed, options.connections, options.seconds)
                lines = read_complete(trace) if trace else []
            # A path has 2 bytes before it and 1 after it, an IPv4 address has 16 bytes.
            found = Trace(programs(testbed), {PROXY: len(testbed.socket) + 3, AGENT: 16})
    except TestbedError as error:
        raise SystemExit(str(error)) from None
    if options.save:
        options.save.write_text('\n'.join(lines))
    if lines:
        found.read(lines)
        print(table([exchange for exchange in found.exchanges if exchange.opened_s >= began_s]))


def read_complete(trace: Path) -> list[str]:
    """Stop the trace and return its lines. Exits if an event was lost."""
    (trace / 'tracing_on').write_text('0')
    for path in trace.glob('per_cpu/*/stats'):
        if lost := re.search(r'^(?:overrun|dropped events): [1-9].*', path.read_text(), re.M):
            raise SystemExit(f'the trace is incomplete ({lost[0]}): run it for a shorter time')
    return (trace / 'trace').read_text().splitlines()


if __name__ == '__main__':
    main()
