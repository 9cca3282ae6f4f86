# SPDX-License-Identifier: Apache-2.0
"""This path, what operators run today, and two bare haproxy hops, side by side on one machine.

    python benchmarks/run.py [--quick] [--cases steady,storm,density] [--peers ...] [--runs N] [--minutes M]
    python benchmarks/run.py --report benchmarks/results/FILE.jsonl

As root. Writes benchmarks/results/TIME.jsonl while it goes, and doc/benchmark.md with its plots at the end
(``--no-report``: not). The peers take turns, run by run, so that what the machine does meanwhile meets all of them;
each measurement waits for a quiet machine first, and is made again when others used it meanwhile.
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
from stage import URL, Stage, StageError

HERE = Path(__file__).resolve().parent
STORM_ROUTERS, STORM_GUESTS, STORM_S = 50, 500, 150.0
FOREIGN_CORES = 0.25
"""How much of the machine others may use during a measurement before it is made again."""
TRIES = 3
PROGRAMS = ('haproxy', 'wrk', 'curl', 'ip', 'iptables', 'nsenter', 'perl')


@dataclass
class Plan:
    """What is measured. ``routers`` is, by peer, how many are attached in the density case."""

    steady: list[str]
    storm: list[str]
    routers: dict[str, list[int]]
    connections: list[str]
    _slots: list[int]
    runs: int
    storm_runs: int
    density_runs: int
    seconds: float
    minutes: float
    quiet_s: float = 3.0
    patience_s: float = 60.0
    cases: list[str] = field(default_factory=lambda: ['steady', 'storm', 'density'])


QUICK = Plan(
    steady=['neutron', 'two_hop', 'one_hop', 'one_hop_cached', 'floor'],
    storm=['neutron', 'two_hop', 'one_hop'],
    routers={'neutron': [100], 'two_hop': [1000], 'one_hop': [1000]},
    connections=['new'],
    _slots=[8, 64],
    runs=3,
    storm_runs=1,
    density_runs=1,
    seconds=4,
    minutes=12,
    quiet_s=1.5,
    patience_s=15,
)
OURS = ['two_hop', 'two_hop_cached', 'one_hop', 'one_hop_cached']
FULL = Plan(
    steady=['neutron', *OURS, 'floor'],
    storm=['neutron', *OURS, 'floor'],
    routers={'neutron': [10, 100, 500], **{peer: [10, 100, 1000, 4000] for peer in ('two_hop', 'one_hop')}},
    connections=['new', 'kept'],
    _slots=[1, 8, 64],
    runs=5,
    storm_runs=3,
    density_runs=3,
    seconds=8,
    minutes=100,
)


class Bench:
    """Runs a plan; ``tell`` is called with each result."""

    def __init__(self, plan: Plan, tell: Callable[[dict[str, Any]], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._end = time.monotonic() + 60 * plan.minutes

    def run(self) -> None:
        """Everything once, then again, so that where the time ends there is something of everything."""
        for run, case, peer, argument in self._turns():
            if time.monotonic() > self._end:
                self._tell({'kind': 'cut', 'why': f'the {self._plan.minutes:g} minutes were over', 'before_run': run})
                return
            _say(f'run {run}: {case} {peer} {argument or ""}')
            try:
                if case == 'steady':
                    self._steady(peer, run)
                elif case == 'storm':
                    self._storm(peer, run)
                else:
                    self._density(peer, argument, run)
            except StageError as error:
                _say(str(error))
                self._tell({'kind': 'error', 'case': case, 'peer': peer, 'run': run, 'error': str(error)[:2000]})

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
        with Stage(peer) as stage:
            stage.start_agent()
            stage.attach(stage.routers)
            stage.until_answered()
            self._load(stage, 'kept', 4, 1.0)  # the first requests of a process are no measure
            for connections in self._plan.connections:
                for _slots in self._plan._slots:
                    found = self._quietly(
                        lambda c=connections, n=_slots: self._load(stage, c, n, self._plan.seconds)  # type: ignore[misc]
                    )
                    self._tell({'kind': 'steady', 'peer': peer, 'run': run, **found})

    def _storm(self, peer: str, run: int) -> None:
        with Stage(
            peer, routers=STORM_ROUTERS, with_guests=STORM_ROUTERS, guests_each=STORM_GUESTS // STORM_ROUTERS
        ) as stage:
            stage.start_agent()
            stage.attach(stage.routers)
            stage.until_answered()
            argv = [sys.executable, str(HERE / 'storm.py'), str(STORM_ROUTERS), str(stage.guests_each), str(STORM_S)]
            self._tell(
                {'kind': 'storm', 'peer': peer, 'run': run, **self._quietly(lambda: self._measured(stage, argv), 1)}
            )

    def _density(self, peer: str, routers: int, run: int) -> None:
        with Stage(peer, routers=routers) as stage:
            stage.start_agent()
            machine.wait_until_quiet(self._plan.quiet_s, self._plan.patience_s)
            before = stage.pids()
            memory_kib, files, used_s = machine.memory_kib(before), machine.descriptors(before), machine.cpu_s(before)
            children_s = _children_s()
            began = time.monotonic()
            stage.attach(stage.routers)
            seconds = time.monotonic() - began
            after = stage.pids()
            cpu_s = machine.cpu_s(after) - used_s + _children_s() - children_s
            time.sleep(1)  # what a start leaves behind is freed
            result = {
                'routers': routers,
                'attach_s': round(seconds, 3),
                'attach_cpu_s': round(cpu_s, 2),
                'memory_kib': round((machine.memory_kib(after) - memory_kib) / routers, 1),
                'files': round((machine.descriptors(after) - files) / routers, 2),
                'processes': len(after),
            }
            stage.until_answered()
            self._load(stage, 'new', 4, 1.0)
            found = self._quietly(lambda: self._load(stage, 'new', 8, self._plan.seconds))
            self._tell({'kind': 'density', 'peer': peer, 'run': run, **result, **found})

    def _quietly(self, measure: Callable[[], dict[str, Any]], tries: int = TRIES) -> dict[str, Any]:
        """Measure on a quiet machine, and again when it was not; the quietest measurement counts."""
        found = []
        while len(found) < tries:
            quiet = machine.wait_until_quiet(self._plan.quiet_s, self._plan.patience_s)
            found.append({**measure(), 'quiet_before': quiet})
            if found[-1]['foreign_cores'] <= FOREIGN_CORES:
                break
        return min(found, key=lambda one: one['foreign_cores'])

    def _load(self, stage: Stage, connections: str, _slots: int, seconds: float) -> dict[str, Any]:
        argv = ['wrk', '-t1', f'-c{_slots}', f'-d{seconds:g}s', '--timeout', '20s', '-s', str(HERE / 'steady.lua')]
        argv += ['-H', 'Connection: close'] if connections == 'new' else []
        found = self._measured(stage, [*argv, URL])
        return {
            'connections': connections,
            '_slots': _slots,
            **found,
            'per_s': round(found['good'] / found['seconds'], 1),
        }

    def _measured(self, stage: Stage, argv: list[str]) -> dict[str, Any]:
        """What the load's own last line says, and what the peer's processes and the machine used meanwhile."""
        pids, nova = stage.pids(), stage.nova_pids()
        peer_s, nova_s, children_s, busy_s = machine.cpu_s(pids), machine.cpu_s(nova), _children_s(), machine.busy_s()
        began = time.monotonic()
        # The load is held to its own time; this bound is for a load that hangs.
        done = subprocess.run([*stage.in_guests(), *argv], capture_output=True, text=True, check=False, timeout=300)
        took_s = time.monotonic() - began
        if done.returncode:
            raise StageError(f'{argv[0]}: {done.stderr}')
        peer_s, nova_s = machine.cpu_s(stage.pids()) - peer_s, machine.cpu_s(nova) - nova_s
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
    """CPU of the children that were waited for: here, the load."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _say(text: str) -> None:
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
    if args._slots:
        plan._slots = [int(word) for word in words(args._slots)]
    if args.connections:
        plan.connections = words(args.connections)
    if args.routers:
        plan.routers = {peer: [int(word) for word in words(args.routers)] for peer in plan.routers if peer != 'floor'}
    if args.runs:
        plan.runs = plan.storm_runs = plan.density_runs = args.runs
    for name in ('seconds', 'minutes', 'patience_s'):
        if (value := getattr(args, name)) is not None:
            setattr(plan, name, value)
    plan.steady, plan.storm = _available(plan.steady), _available(plan.storm)
    plan.routers = {peer: plan.routers[peer] for peer in _available(list(plan.routers))}
    return plan


def main() -> int:
    """Measure, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='what matters most, in about ten minutes')
    parser.add_argument('--cases', help='of steady, storm, density, separated by commas')
    parser.add_argument('--peers', help='names of directories in benchmarks/peers')
    parser.add_argument('--at-once', help='steady: how many connections at once, e.g. 1,8,64')
    parser.add_argument('--connections', help='steady: new (one for each request), kept')
    parser.add_argument('--routers', help='density: how many, e.g. 10,100,1000')
    parser.add_argument('--runs', type=int, help='of each case')
    parser.add_argument('--seconds', type=float, help='steady: of each measurement')
    parser.add_argument('--minutes', type=float, help='no further measurement is begun after so many')
    parser.add_argument('--patience', dest='patience_s', type=float, help='seconds to wait for a quiet machine')
    parser.add_argument('--report', nargs='+', metavar='JSONL', help='measure nothing, report these results')
    parser.add_argument('--no-report', action='store_true', help='leave doc/benchmark.md as it is')
    args = parser.parse_args()
    if args.report:
        report.write([Path(name) for name in args.report])
        return 0
    if os.geteuid():
        parser.error('namespaces are made: run it as root')
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        parser.error(f'install {", ".join(missing)} first: they are started')
    plan = _plan(args)
    if 'neutron' in {*plan.steady, *plan.storm, *plan.routers}:
        _say('Neutron is installed, if it is not there yet')
        install = subprocess.run([HERE / 'peers/neutron/install'], stdout=subprocess.PIPE, text=True, check=True)
        os.environ['METADATA_WSGI_NEUTRON_PYTHON'] = install.stdout.strip()
    os.environ.setdefault('METADATA_WSGI_BIN', str(Path(sys.executable).parent))
    results = HERE / 'results'
    results.mkdir(exist_ok=True)
    path = results / f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M}.jsonl'
    with open(path, 'a') as file:

        def tell(result: dict[str, Any]) -> None:
            line = json.dumps(result)
            print(line, file=file, flush=True)
            print(line, flush=True)

        # The namespaces, and what runs in them, are to go also where somebody ends this.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        tell({'kind': 'machine', 'date': f'{datetime.date.today()}', **machine.description()})
        try:
            Bench(plan, tell).run()
        except KeyboardInterrupt:
            tell({'kind': 'cut', 'why': 'interrupted'})
    if not args.no_report:
        report.write([path])
    return 0


if __name__ == '__main__':
    sys.exit(main())
