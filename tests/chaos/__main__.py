# SPDX-License-Identifier: Apache-2.0
"""Inject faults while 20 instances boot in a loop through the real programs in real namespaces.

    tox -e chaos                                              # every fault, 5 s and 60 s, in every setup: hours
    tox -e chaos -- --setup shared --fault 'Nova*' --seconds 5
    tox -e chaos -- --hosts 5 --pause 1 --seconds 60          # five hosts side by side, with a fifth of the load each
    tox -e chaos -- --write doc/chaos.md                      # the rows of the table there too

Needs root. Exits with 1 if an instance noticed what the contract does not allow. Nothing outside its own namespaces is
touched.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from metadata_wsgi import limits
from tests.chaos import experiment, isolation, report
from tests.chaos.experiment import Row
from tests.chaos.faults import FAULTS
from tests.chaos.faults.fault import Fault
from tests.chaos.setups import PEER, SETUPS, make_host, missing

PAUSE_S = 0.2
RUN_ONE = '--only-setup'
MAX_ROWS_PER_HOST = 12
"""Where several hosts run side by side: a setup with more rows gets several hosts."""


def main(argv: Sequence[str]) -> int:
    """Run the faults; the exit code."""
    args = _parser().parse_args(argv)
    faults = [
        fault for fault in FAULTS if any(fnmatch.fnmatchcase(fault.name, pattern) for pattern in args.fault or '*')
    ]
    if args.list:
        for fault in faults:
            print(f'{fault.name:55} {", ".join(fault.setups)}')
        return 0
    if args.only_setup:
        isolation.enter('tests.chaos', list(argv))
        return _run_setup(args, faults)
    setups = args.setup or (*SETUPS, PEER)
    found, is_complete = _run_setups(argv, args, setups, faults)
    text = report.table(found)
    print(f'\n{text}')
    if args.write:
        report.write(Path(args.write), found)
    for row in found:
        for sentence in row.broken:
            print(f'BROKEN: {row.setup}: {row.fault}, {row.for_s:g} s: {sentence}')
    return 0 if is_complete and not any(row.broken for row in found) else 1


def _run_setups(
    argv: Sequence[str], args: argparse.Namespace, setups: Sequence[str], faults: Sequence[Fault]
) -> tuple[list[Row], bool]:
    """The rows of all setups, and whether every program ended well. Each host is a program in its own namespaces."""
    running: set[subprocess.Popen[bytes]] = set()
    lock = threading.Lock()

    def stop(number: int, frame: object) -> None:
        for process in running:
            process.terminate()
        sys.exit(1)

    def run(part: tuple[str, str]) -> int:
        setup, share = part
        rows = directory / f'{setup} {share.replace("/", " of ")}'
        rows.touch()
        command = [sys.executable, '-m', 'tests.chaos', *argv, RUN_ONE, setup, '--share', share, '--rows', str(rows)]
        with lock:
            process = subprocess.Popen(command)
            running.add(process)
        code = process.wait()
        running.discard(process)
        return code

    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.hosts) as pool:
        directory = Path(name)
        codes = list(pool.map(run, _parts(args, setups, faults)))
        rows = [Row(**json.loads(line)) for file in directory.iterdir() for line in file.read_text().splitlines()]
    return sorted(rows, key=report.place), not any(codes)


def _parts(args: argparse.Namespace, setups: Sequence[str], faults: Sequence[Fault]) -> list[tuple[str, str]]:
    """What one host runs: a setup and the share of its rows, for example 2/5."""
    parts = []
    for setup in setups:
        count = len(_wanted(setup, faults, args.seconds, '1/1'))
        hosts = -(-count // MAX_ROWS_PER_HOST) if args.hosts > 1 else min(1, count)
        parts += [(setup, f'{number}/{hosts}') for number in range(1, hosts + 1)]
    return parts


def _wanted(setup: str, faults: Sequence[Fault], seconds: Sequence[float], share: str) -> list[tuple[Fault, float]]:
    number, hosts = map(int, share.split('/'))
    wanted = [(fault, for_s) for fault in faults if setup in fault.setups for for_s in seconds]
    return wanted[number - 1 :: hosts]


def _run_setup(args: argparse.Namespace, faults: Sequence[Fault]) -> int:
    """Run the share of the faults of one setup and append each row to the file ``args.rows``."""
    if reason := missing(args.only_setup):
        print(f'{args.only_setup}: left out: {reason}', flush=True)
        return 0
    wanted: Sequence[tuple[Fault, float]] = _wanted(args.only_setup, faults, args.seconds, args.share)
    while wanted:
        # A host that did not recover is replaced.
        wanted = _run_on_one_host(args, wanted)
    return 0


def _run_on_one_host(args: argparse.Namespace, wanted: Sequence[tuple[Fault, float]]) -> Sequence[tuple[Fault, float]]:
    """Run the wanted faults until the host does not recover; those that are left."""
    setup = args.only_setup
    directory = Path(tempfile.mkdtemp(prefix='metadata-wsgi-chaos-'))
    directory.chmod(0o755)
    host = make_host(setup, directory, args.former, args.deadline)
    try:
        host.start()
        load = host.load(args.pause)
        for number, (fault, for_s) in enumerate(wanted, 1):
            if reason := fault.missing():
                print(f'{setup}: {fault.name}: left out: {reason}', flush=True)
                continue
            row = experiment.run(setup, host, load, fault, for_s)
            with Path(args.rows).open('a') as file:
                file.write(json.dumps(asdict(row)) + '\n')
            print(report.table([row]).splitlines()[-1], *row.broken, flush=True)
            if row.broken and args.verbose:
                print(host.log_text(), flush=True)
            if row.recovery_s is None:
                load.stop()
                return wanted[number:]
        load.stop()
        return ()
    except BaseException:
        print(host.log_text(), flush=True)
        raise
    finally:
        host.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='tox -e chaos --', description=__doc__.splitlines()[0])
    parser.add_argument('--setup', action='append', choices=(*SETUPS, PEER), help='only this one; may be repeated')
    parser.add_argument('--fault', action='append', help='only faults whose name matches; may be repeated')
    parser.add_argument('--seconds', type=float, nargs='+', default=[5.0, 60.0], help='how long each fault lasts')
    parser.add_argument('--hosts', type=int, default=1, help='that run side by side (default: %(default)s)')
    parser.add_argument('--pause', type=float, default=PAUSE_S, help='seconds between two requests of an instance '
                        '(default: %(default)s)')  # fmt: skip
    parser.add_argument('--deadline', type=float, default=limits.REQUEST_TIMEOUT_S, help='of a request; instances wait '
                        'a second longer (default: %(default)s; a higher one for a busy machine)')  # fmt: skip
    parser.add_argument('--former', default='', help='git revision from which upgrades start (default: this code with '
                        'another version number)')  # fmt: skip
    parser.add_argument('--write', help='a file in whose table the rows are replaced')
    parser.add_argument('--list', action='store_true', help='print the faults and their setups')
    parser.add_argument('--verbose', action='store_true', help='print the logs after a breach')
    parser.add_argument(RUN_ONE, help=argparse.SUPPRESS)
    parser.add_argument('--share', default='1/1', help=argparse.SUPPRESS)
    parser.add_argument('--rows', help=argparse.SUPPRESS)
    return parser


if __name__ == '__main__':
    os.environ.setdefault('PYTHONUNBUFFERED', '1')
    sys.exit(main(sys.argv[1:]))
