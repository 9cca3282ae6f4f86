# SPDX-License-Identifier: Apache-2.0
"""Inject faults while 20 instances boot in a loop through the real programs in real namespaces.

    tox -e chaos                                              # every fault, 5 s and 60 s, in every setup: hours
    tox -e chaos -- --setup shared --fault 'Nova*' --seconds 5
    tox -e chaos -- --write doc/chaos.md                      # the table there too

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
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos import experiment, isolation, report
from tests.chaos.experiment import Row
from tests.chaos.faults import FAULTS, PEER, SETUPS, Fault, make_host, missing

PAUSE_S = 0.2
RUN_ONE = '--only-setup'


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
        return _run_setup(args.only_setup, faults, args.seconds, Path(args.rows))
    # subprocess.run then ends what it has started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory, 'rows')
        rows.touch()
        codes = []
        for setup in args.setup or (*SETUPS, PEER):
            command = [sys.executable, '-m', 'tests.chaos', *argv, RUN_ONE, setup, '--rows', str(rows)]
            codes.append(subprocess.run(command, check=False).returncode)
        found = [Row(**json.loads(line)) for line in rows.read_text().splitlines()]
    text = report.table(found)
    print(f'\n{text}')
    if args.write:
        report.write(Path(args.write), text)
    for row in found:
        for sentence in row.broken:
            print(f'BROKEN: {row.setup}: {row.fault}, {row.for_s:g} s: {sentence}')
    return 1 if any(codes) or any(row.broken for row in found) else 0


def _run_setup(setup: str, faults: Iterable[Fault], seconds: Sequence[float], rows: Path) -> int:
    """Run the faults of one setup and append each row to the file ``rows``."""
    if reason := missing(setup):
        print(f'{setup}: left out: {reason}', flush=True)
        return 0
    wanted = [(fault, for_s) for fault in faults if setup in fault.setups for for_s in seconds]
    while wanted:
        # A host that did not recover is replaced.
        wanted = _run_on_one_host(setup, wanted, rows)
    return 0


def _run_on_one_host(setup: str, wanted: Sequence[tuple[Fault, float]], rows: Path) -> Sequence[tuple[Fault, float]]:
    """Run the wanted faults until the host does not recover; those that are left."""
    directory = Path(tempfile.mkdtemp(prefix='metadata-wsgi-chaos-'))
    directory.chmod(0o755)
    host = make_host(setup, directory)
    try:
        host.start()
        load = host.load(PAUSE_S)
        for number, (fault, for_s) in enumerate(wanted, 1):
            if reason := fault.missing():
                print(f'{setup}: {fault.name}: left out: {reason}', flush=True)
                continue
            row = experiment.run(setup, host, load, fault, for_s)
            with rows.open('a') as file:
                file.write(json.dumps(asdict(row)) + '\n')
            print(report.table([row]).splitlines()[-1], *row.broken, flush=True)
            if row.broken and '--verbose' in sys.argv:
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
    parser.add_argument('--write', help='a file whose table is replaced')
    parser.add_argument('--list', action='store_true', help='print the faults and their setups')
    parser.add_argument('--verbose', action='store_true', help='print the logs after a breach')
    parser.add_argument(RUN_ONE, help=argparse.SUPPRESS)
    parser.add_argument('--rows', help=argparse.SUPPRESS)
    return parser


if __name__ == '__main__':
    os.environ.setdefault('PYTHONUNBUFFERED', '1')
    sys.exit(main(sys.argv[1:]))
