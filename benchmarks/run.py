# SPDX-License-Identifier: Apache-2.0
"""Benchmarks metadata_wsgi, Neutron's agent with haproxy, and two bare haproxies ("floor") on one machine.

    python benchmarks/run.py [--quick] [--cases steady,storm,density] [--peers ...] [--runs N] [--minutes M]
    python benchmarks/run.py --report benchmarks/results/FILE.jsonl

Needs root. Appends each result to benchmarks/results/TIME.jsonl, and writes doc/benchmark.md with its plots at the end
(not with ``--no-report``). The peers (the programs that are compared) are measured in turns, so that changes of the
machine affect all of them. Each measurement waits until the machine is idle, and is repeated if other processes used
the CPU meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import report
from testbed import URL, Testbed, TestbedError

HERE = Path(__file__).resolve().parent
STORM_ROUTERS, STORM_GUESTS, STORM_S = 50, 500, 150.0
FOREIGN_CORES = 0.25
"""CPU cores that other processes may use. If they use more, the measurement is repeated."""
TRIES = 3
PROGRAMS = ('haproxy', 'wrk', 'curl', 'ip', 'iptables', 'nsenter', 'perl')


@dataclass
class Plan:
    """What is measured. ``routers``: by peer, the numbers of attached routers in the case density."""

    steady: list[str]
    storm: list[str]
    routers: dict[str, list[int]]
    connections: list[str]
    concurrency: list[int]
    runs: int
    storm_runs: int
    density_runs: int
    seconds: float
    minutes: float
    quiet_s: float = 3.0
    quiet_timeout_s: float = 60.0
    cases: list[str] = field(default_factory=lambda: ['steady', 'storm', 'density'])


QUICK = Plan(
    steady=['neutron', 'two_hop', 'one_hop', 'one_hop_cached', 'floor'],
    storm=['neutron', 'two_hop', 'one_hop'],
    routers={'neutron': [100], 'two_hop': [1000], 'one_hop': [1000]},
    connections=['new'],
    concurrency=[8, 64],
    runs=3,
    storm_runs=1,
    density_runs=1,
    seconds=4,
    minutes=12,
    quiet_s=1.5,
    quiet_timeout_s=15,
)
OURS = ['two_hop', 'two_hop_cached', 'one_hop', 'one_hop_cached']
FULL = Plan(
    steady=['neutron', *OURS, 'floor'],
    storm=['neutron', *OURS, 'floor'],
    routers={'neutron': [10, 100, 500], **{peer: [10, 100, 1000, 4000] for peer in ('two_hop', 'one_hop')}},
    connections=['new', 'keepalive'],
    concurrency=[1, 8, 64],
    runs=5,
    storm_runs=3,
    density_runs=3,
    seconds=8,
    minutes=100,
)


class Bench:
    """Runs a plan. ``record`` is called with each result."""

    def __init__(self, plan: Plan, record: Callable[[dict[str, Any]], None]) -> None:
        self._plan = plan
        self._record = record
        self._end = time.monotonic() + 60 * plan.minutes

    def run(self) -> None:
        """Run all cases once, then again, and so on. So each case has results when the time is over."""
        for run, case, peer, argument in self._turns():
            if time.monotonic() > self._end:
                self._record({'kind': 'cut', 'why': f'the {self._plan.minutes:g} minutes were over', 'before_run': run})
                return
            _log(f'run {run}: {case} {peer} {argument or ""}')
            try:
                if case == 'steady':
                    self._steady(peer, run)
                elif case == 'storm':
                    self._storm(peer, run)
                else:
                    self._density(peer, argument, run)
            except TestbedError as error:
                _log(str(error))
                self._record({'kind': 'error', 'case': case, 'peer': peer, 'run': run, 'error': str(error)[:2000]})

    def _turns(self) -> Iterator[tuple[int, str, str, int]]:
        plan = self._plan
        for run in range(1, max(plan.runs, plan.storm_runs, plan.density_runs) + 1):
            if 'steady' in plan.cases and run <= plan.runs:
                yield from ((run, 'steady', peer, 0) for peer in plan.steady)
            if 'storm' in plan.cases and run <= plan.storm_runs:
                yield from ((run, 'storm', peer, 0) for peer in plan.storm)
            if 'density' in plan.cases and run <= plan.density_runs:
                for count in sorted({count for counts in plan.routers.values() for count in counts}):
                    yield from ((run, 'density', peer, count) for peer in plan.routers if count in plan.routers[peer])

    def _steady(self, peer: str, run: int) -> None:
        with Testbed(peer) as testbed:
            testbed.start_agent()
            testbed.attach(testbed.routers)
            testbed.wait_until_responding()
            self._load(testbed, 'keepalive', 4, 1.0)  # warm-up: the first requests of a process are slower
            for connections in self._plan.connections:
                for concurrency in self._plan.concurrency:
                    found = self._on_quiet_machine(
                        lambda c=connections, n=concurrency: self._load(testbed, c, n, self._plan.seconds)  # type: ignore[misc]
                    )
                    self._record({'kind': 'steady', 'peer': peer, 'run': run, **found})

    def _storm(self, peer: str, run: int) -> None:
        with Testbed(
            peer, routers=STORM_ROUTERS, with_guests=STORM_ROUTERS, guests_each=STORM_GUESTS // STORM_ROUTERS
        ) as testbed:
            testbed.start_agent()
            testbed.attach(testbed.routers)
            testbed.wait_until_responding()
            argv = [sys.executable, str(HERE / 'storm.py'), str(STORM_ROUTERS), str(testbed.guests_each), str(STORM_S)]
            self._record(
                {
                    'kind': 'storm',
                    'peer': peer,
                    'run': run,
                    **self._on_quiet_machine(lambda: self._run_load(testbed, argv), 1),
                }
            )

    def _density(self, peer: str, routers: int, run: int) -> None:
        with Testbed(peer, routers=routers) as testbed:
            testbed.start_agent()
            machine.wait_until_quiet(self._plan.quiet_s, self._plan.quiet_timeout_s)
            before = testbed.pids()
            memory_kib, files, used_s = machine.memory_kib(before), machine.descriptors(before), machine.cpu_s(before)
            children_s = _children_s()
            began = time.monotonic()
            testbed.attach(testbed.routers)
            seconds = time.monotonic() - began
            after = testbed.pids()
            cpu_s = machine.cpu_s(after) - used_s + _children_s() - children_s
            time.sleep(1)  # the processes free memory after their start
            result = {
                'routers': routers,
                'attach_s': round(seconds, 3),
                'attach_cpu_s': round(cpu_s, 2),
                'memory_kib': round((machine.memory_kib(after) - memory_kib) / routers, 1),
                'files': round((machine.descriptors(after) - files) / routers, 2),
                'processes': len(after),
            }
            testbed.wait_until_responding()
            self._load(testbed, 'new', 4, 1.0)
            found = self._on_quiet_machine(lambda: self._load(testbed, 'new', 8, self._plan.seconds))
            self._record({'kind': 'density', 'peer': peer, 'run': run, **result, **found})

    def _on_quiet_machine(self, measure: Callable[[], dict[str, Any]], tries: int = TRIES) -> dict[str, Any]:
        """Measure up to ``tries`` times, until other processes use little CPU. Returns the least disturbed result."""
        found = []
        while len(found) < tries:
            quiet = machine.wait_until_quiet(self._plan.quiet_s, self._plan.quiet_timeout_s)
            found.append({**measure(), 'quiet_before': quiet})
            if found[-1]['foreign_cores'] <= FOREIGN_CORES:
                break
        return min(found, key=lambda one: one['foreign_cores'])

    def _load(self, testbed: Testbed, connections: str, concurrency: int, seconds: float) -> dict[str, Any]:
        argv = ['wrk', '-t1', f'-c{concurrency}', f'-d{seconds:g}s', '--timeout', '20s', '-s', str(HERE / 'steady.lua')]
        argv += ['-H', 'Connection: close'] if connections == 'new' else []
        found = self._run_load(testbed, [*argv, URL])
        return {
            'connections': connections,
            'concurrency': concurrency,
            **found,
            'per_s': round(found['good'] / found['seconds'], 1),
        }

    def _run_load(self, testbed: Testbed, argv: list[str]) -> dict[str, Any]:
        """Run the load generator. Returns its JSON result, with the CPU use of the peer and of other processes."""
        pids, nova = testbed.pids(), testbed.nova_pids()
        peer_s, nova_s, children_s, busy_s = machine.cpu_s(pids), machine.cpu_s(nova), _children_s(), machine.busy_s()
        began = time.monotonic()
        # The load generator ends by itself; the timeout is for one that hangs.
        done = subprocess.run([*testbed.in_guests(), *argv], capture_output=True, text=True, check=False, timeout=300)
        took_s = time.monotonic() - began
        if done.returncode:
            raise TestbedError(f'{argv[0]}: {done.stderr}')
        peer_s, nova_s = machine.cpu_s(testbed.pids()) - peer_s, machine.cpu_s(nova) - nova_s
        foreign_s = machine.busy_s() - busy_s - peer_s - nova_s - (_children_s() - children_s)
        found = json.loads(done.stdout.splitlines()[-1])
        if 'requests' in found:
            found['good'] = found.pop('requests') - found['refused']
            found['failed'] = found.pop('refused') + found.pop('broken')
        found['seconds'] = round(found['seconds'], 3)
        found['cpu_us'] = round(1e6 * peer_s / found['good'], 1) if found['good'] else None
        found['foreign_cores'] = round(foreign_s / took_s, 2)
        return dict(found)


def _children_s() -> float:
    """CPU time of reaped children, that is of the load generator."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _log(text: str) -> None:
    print(f'{datetime.datetime.now():%H:%M:%S} {text}', file=sys.stderr, flush=True)


def _available(peers: list[str]) -> list[str]:
    return [peer for peer in peers if (HERE / 'peers' / peer / 'start_agent').exists()]


def _plan(args: argparse.Namespace) -> Plan:
    plan = QUICK if args.quick else FULL
    words: Callable[[str], list[str]] = lambda text: [word for word in text.split(',') if word]  # noqa: E731
    if args.cases:
        plan.cases = words(args.cases)
    if args.peers:
        chosen = words(args.peers)
        plan.routers = {peer: plan.routers.get(peer, [1000]) for peer in chosen}
        plan.steady, plan.storm = list(chosen), list(chosen)
    if args.concurrency:
        plan.concurrency = [int(word) for word in words(args.concurrency)]
    if args.connections:
        plan.connections = words(args.connections)
    if args.routers:
        plan.routers = {peer: [int(word) for word in words(args.routers)] for peer in plan.routers if peer != 'floor'}
    if args.runs:
        plan.runs = plan.storm_runs = plan.density_runs = args.runs
    for name in ('seconds', 'minutes', 'quiet_timeout_s'):
        if (value := getattr(args, name)) is not None:
            setattr(plan, name, value)
    plan.steady, plan.storm = _available(plan.steady), _available(plan.storm)
    plan.routers = {peer: plan.routers[peer] for peer in _available(list(plan.routers))}
    return plan


def main() -> int:
    """Measure, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='the most important cases, in about ten minutes')
    parser.add_argument('--cases', help='of steady, storm, density, separated by commas')
    parser.add_argument('--peers', help='names of directories in benchmarks/peers')
    parser.add_argument('--concurrency', help='steady: numbers of concurrent connections, e.g. 1,8,64')
    parser.add_argument('--connections', help='steady: new (one per request), keepalive')
    parser.add_argument('--routers', help='density: numbers of routers, e.g. 10,100,1000')
    parser.add_argument('--runs', type=int, help='number of runs of each case')
    parser.add_argument('--seconds', type=float, help='steady: duration of each measurement')
    parser.add_argument('--minutes', type=float, help='start no measurement after this many minutes')
    parser.add_argument(
        '--quiet-timeout', dest='quiet_timeout_s', type=float, help='seconds to wait for an idle machine'
    )
    parser.add_argument(
        '--report', nargs='+', metavar='JSONL', help='measure nothing, only write the report of these results'
    )
    parser.add_argument('--no-report', action='store_true', help='do not write doc/benchmark.md')
    args = parser.parse_args()
    if args.report:
        report.write([Path(name) for name in args.report])
        return 0
    if os.geteuid():
        parser.error('run it as root: it makes network namespaces')
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        parser.error(f'install {", ".join(missing)} first')
    plan = _plan(args)
    if 'neutron' in {*plan.steady, *plan.storm, *plan.routers}:
        _log('installing Neutron if necessary')
        install = subprocess.run([HERE / 'peers/neutron/install'], stdout=subprocess.PIPE, text=True, check=True)
        os.environ['METADATA_WSGI_NEUTRON_PYTHON'] = install.stdout.strip()
    os.environ.setdefault('METADATA_WSGI_BIN', str(Path(sys.executable).parent))
    results = HERE / 'results'
    results.mkdir(exist_ok=True)
    path = results / f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M}.jsonl'
    with open(path, 'a') as file:

        def record(result: dict[str, Any]) -> None:
            line = json.dumps(result)
            print(line, file=file, flush=True)
            print(line, flush=True)

        # SIGTERM raises SystemExit, so that the namespaces and their processes are removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        record({'kind': 'machine', 'date': f'{datetime.date.today()}', **machine.description()})
        try:
            Bench(plan, record).run()
        except KeyboardInterrupt:
            record({'kind': 'cut', 'why': 'interrupted'})
    if not args.no_report:
        report.write([path])
    return 0


if __name__ == '__main__':
    sys.exit(main())
