# SPDX-License-Identifier: Apache-2.0
"""Compares ``metadata-wsgi-haproxy`` with haproxy for many routers: time and memory, in one run.

    python benchmarks/seam.py [--routers 20,1000]

Needs root. Makes one namespace for each router. In each namespace, one after the other, it starts the proxy as
Neutron's agents do, and waits for the end of the program's output. The command is
``ip netns exec NAMESPACE env PROCESS_TAG=... haproxy -f FILE``, with the configuration that the agents write. CPU is
the user and system time of the programs that are started, and of keeper and shared proxy meanwhile. On a busy machine
the CPU time is more reliable than the seconds. Memory is the sum of the proportional set sizes of all processes:
keeper, shared proxy and holders; or the haproxies. Prints a table and a line of JSON for each measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import machine

sys.path.insert(0, str(Path(__file__).parent.parent))

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client
from tests.neutron_haproxy import DEFAULTS

HERE = Path(__file__).resolve().parent
SEAM = HERE.parent / 'bin' / 'metadata-wsgi-haproxy'
BIN = Path(sys.executable).parent
CONFIGURATION = f"""
global
    log         /dev/log local0 info
    log-tag     haproxy-metadata-proxy-{{id}}
    user        root
    group       root
    maxconn     1024
    pidfile     {{pid_file}}
    daemon
{DEFAULTS}
    log global
    option httplog

listen listener
    bind 0.0.0.0:9697
    server metadata {{state}}/metadata_proxy

    http-request del-header X-Neutron-Network-ID
    http-request set-header X-Neutron-Router-ID {{id}}
"""
NAMES = {'seam': '`metadata-wsgi-haproxy`', 'haproxy': 'haproxy'}


class Node:
    """Namespaces for ``count`` routers and a state path."""

    def __init__(self, count: int) -> None:
        self.ids = [str(uuid.uuid4()) for _ in range(count)]
        self.state = Path(tempfile.mkdtemp(prefix='metadata-bench-'))
        self.state.chmod(0o755)
        for name in ('ns-metadata-proxy', 'external/pids'):
            (self.state / name).mkdir(parents=True)

    def __enter__(self) -> Node:
        self._ip('netns add', self.ids)
        for id_ in self.ids:
            text = CONFIGURATION.format(id=id_, pid_file=self._pid_file(id_), state=self.state)
            (self.state / 'ns-metadata-proxy' / f'{id_}.conf').write_text(text)
        return self

    def __exit__(self, *_: object) -> None:
        self.end_proxies()
        self._ip('netns del', self.ids)
        shutil.rmtree(self.state, ignore_errors=True)

    def start_proxies(self, program: str, others: list[int]) -> tuple[float, float]:
        """Start the proxy of each router as an agent does. Returns the elapsed seconds and the CPU seconds.

        ``others`` are the pids of processes that do a part of the work.
        """
        began, used = time.monotonic(), cpu_s(others)
        for id_ in self.ids:
            subprocess.run(
                ['ip', 'netns', 'exec', f'qrouter-{id_}', 'env', f'PROCESS_TAG=haproxy-{id_}', program, '-f',
                 f'{self.state}/ns-metadata-proxy/{id_}.conf'],
                check=True, capture_output=True,
            )  # fmt: skip
        return time.monotonic() - began, cpu_s(others) - used

    def pids(self) -> list[int]:
        """The processes of the pid files: holders or haproxies."""
        return [int(self._pid_file(id_).read_text()) for id_ in self.ids if self._pid_file(id_).exists()]

    def end_proxies(self) -> None:
        """End the processes of the pid files."""
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while set(pids) & set(machine.family(pids)):  # without zombies
            time.sleep(0.01)
        for id_ in self.ids:
            self._pid_file(id_).unlink(missing_ok=True)

    @contextlib.contextmanager
    def shared_proxy(self) -> Iterator[list[int]]:
        """Run keeper and shared proxy. Yields their pids when a worker is connected to the keeper."""
        keeper = [BIN / 'metadata-wsgi', 'keeper', '--state-path', self.state]
        proxy = [BIN / 'quantum-ns-metadata-proxy', '--shared', '--nodaemonize', f'--state_path={self.state}']
        with open(self.state / 'log', 'wb') as log:
            programs = [subprocess.Popen(argv, stdout=log, stderr=log) for argv in (keeper, proxy)]
        try:
            while not self._has_workers():
                if any(program.poll() is not None for program in programs):
                    sys.exit((self.state / 'log').read_text())
                time.sleep(0.05)
            yield [program.pid for program in programs]
        finally:
            for program in programs:
                program.terminate()
            for program in programs:
                program.wait()

    def _has_workers(self) -> bool:
        try:
            with admin_client.connect(str(self.state)) as keeper:
                return bool(keeper.list('')[1])
        except NetnsError:
            return False

    def _pid_file(self, id_: str) -> Path:
        return self.state / 'external' / 'pids' / f'{id_}.pid.haproxy'

    @staticmethod
    def _ip(verb: str, ids: list[str]) -> None:
        lines = ''.join(f'{verb} qrouter-{id_}\n' for id_ in ids)
        subprocess.run(['ip', '-batch', '-', '-force'], input=lines, text=True, check=False, capture_output=True)


def measure(count: int) -> Iterator[dict[str, float | int | str]]:
    """Measure both programs with ``count`` routers, in the same namespaces."""
    with Node(count) as node:
        with node.shared_proxy() as pids:
            times = node.start_proxies(str(SEAM), machine.family(pids))
            shared = machine.memory_kib(machine.family(pids))
            yield result('seam', count, times, shared, machine.memory_kib(node.pids()))
            node.end_proxies()
        times = node.start_proxies(shutil.which('haproxy') or 'haproxy', [])
        yield result('haproxy', count, times, 0, machine.memory_kib(node.pids()))


def cpu_s(others: list[int]) -> float:
    """CPU seconds of the children that have ended, and of ``others``."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + machine.cpu_s(others)


def result(
    program: str, count: int, times: tuple[float, float], shared_kib: int, own_kib: int
) -> dict[str, float | int | str]:
    """One measurement. ``shared_kib``: keeper and shared proxy; ``own_kib``: the processes of the routers."""
    return {
        'kind': 'seam', 'program': program, 'routers': count, 'seconds': round(times[0], 2),
        'cpu_s': round(times[1], 2),
        'shared_kib': shared_kib, 'own_kib': own_kib,
    }  # fmt: skip


def table(results: list[dict[str, float | int | str]]) -> str:
    """The measurements in Markdown."""
    lines = [
        '| program | routers | all started, s | CPU ms each | keeper, proxy, MiB | others, MiB | KiB per router |',
        '|---|---|---|---|---|---|---|',
    ]
    for one in results:
        count = int(one['routers'])
        shared, own = int(one['shared_kib']), int(one['own_kib'])
        lines.append(
            f'| {NAMES[str(one["program"])]} | {count:,} | {one["seconds"]} | '
            f'{float(one["cpu_s"]) / count * 1000:.0f} | '
            f'{shared / 1024:.1f} | {own / 1024:.1f} | {(shared + own) / count:,.0f} |'
        )
    return '\n'.join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--routers', default='20,1000', help='numbers of routers (default: %(default)s)')
    args = parser.parse_args()
    if os.geteuid():
        parser.error('run it as root: it makes network namespaces')
    results = []
    for count in map(int, args.routers.split(',')):
        for one in measure(count):
            print(json.dumps(one), flush=True)
            results.append(one)
    print(table(results))
    return 0


if __name__ == '__main__':
    sys.exit(main())
