# SPDX-License-Identifier: Apache-2.0
"""Run a host with churn and faults for a long time; then check everything that the instances got.

    tox -e soak -- --minutes 30 --seed 7
    python -m tests.soak --check FILE        # check a recorded history again

Instances are replaced, swap addresses, routers are deleted and made anew, the shared secret is rotated, faults of
``tests.chaos`` come at random. The seed is printed. Programs are killed and restarted only in the first part
(``trend.RESTART_SHARE``), so that their memory can be compared afterwards. Needs root. Exits with 1 on a violation or a
growing quantity.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos import isolation
from tests.chaos.host import Host
from tests.chaos.load import OK, RETRY_AFTER, Exchange, Load
from tests.chaos.setups import CACHED, SETUPS, make_host
from tests.soak import history, measure
from tests.soak.checker import Bounds, check
from tests.soak.churn import Churn, Cloud
from tests.soak.history import History, Recorder, Request
from tests.soak.shrink import around, describe, shrink
from tests.soak.trend import RESTART_SHARE, Sample, Trend, trends

PAUSE_S = 0.1
SAMPLE_INTERVAL_S = 5.0
STALE_S = 60.0
MAX_SHOWN = 5
MIN_TREND_MINUTES = 15.0
"""Shorter runs have no trend: they are mostly restarts and warm-up (``trend.WARM_UP_S``)."""


def main(argv: Sequence[str]) -> int:
    """Run or check; the exit code."""
    args = _parser().parse_args(argv)
    bounds = Bounds(stale_s=STALE_S)
    if args.check:
        return _report(history.load(Path(args.check)), bounds, args.interval_minutes * 60)
    isolation.enter('tests.soak', list(argv))
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f'seed {seed}, {args.minutes:g} minutes, {args.setup}', flush=True)
    file = Path(args.history or Path(tempfile.mkdtemp(prefix='metadata-wsgi-soak-'), 'history'))
    samples = run(
        file, setup=args.setup, seconds=args.minutes * 60, seed=seed, paste=args.paste, with_faults=not args.no_faults
    )
    file.with_suffix('.samples').write_text(json.dumps([asdict(one) for one in samples]))
    code = _report(history.load(file), bounds, args.interval_minutes * 60)
    found = trends(samples) if args.minutes >= MIN_TREND_MINUTES else []
    print(trend_table(found) if found else f'no trend: the run is shorter than {MIN_TREND_MINUTES:g} minutes')
    print(f'history: {file}')
    return code or int(any(trend.is_growing for trend in found))


def run(
    file: Path, *, setup: str, seconds: float, seed: int, paste: str = '', with_faults: bool = True
) -> list[Sample]:
    """Run a host with churn and record the history in ``file``; the samples. ``paste`` replaces the paste file."""
    directory = Path(tempfile.mkdtemp(prefix='metadata-wsgi-soak-'))
    directory.chmod(0o755)
    host = make_host(setup, directory)
    # For a paste file that names a filter of the tests.
    os.environ['PYTHONPATH'] = str(Path(__file__).parents[2])
    host.options = {'lookup_cache_stale_seconds': STALE_S, **({'metadata_paste_config': paste} if paste else {})}
    recorder = Recorder(file)
    try:
        host.start()
        return _run(host, recorder, seconds, seed, with_faults=with_faults)
    except BaseException:
        print(host.log_text(), flush=True)
        raise
    finally:
        recorder.close()
        file.with_suffix('.log').write_text(host.log_text(max_chars=1 << 24))
        host.close()


def _run(host: Host, recorder: Recorder, seconds: float, seed: int, *, with_faults: bool) -> list[Sample]:
    cloud = Cloud(host, recorder)
    cloud.start()
    places = [cloud.place(client) for client in host.clients]

    def record(exchange: Exchange) -> None:
        recorder.add(Request(exchange.started_s, exchange.ended_s, places[exchange.client], exchange.outcome,
                             exchange.instance_id))  # fmt: skip

    load = Load(host.clients, pause_s=PAUSE_S, record=record)
    churn = Churn(host, cloud, recorder, seed, with_faults=with_faults)
    failed: list[BaseException] = []

    def run_churn() -> None:
        try:
            churn.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run_churn)
    thread.start()
    samples: list[Sample] = []
    began_s = time.monotonic()
    while (now_s := time.monotonic()) < began_s + seconds and not failed:
        churn.may_kill = now_s < began_s + RESTART_SHARE * seconds
        samples += measure.sample(host)
        time.sleep(SAMPLE_INTERVAL_S)
    churn.stop()
    thread.join()
    load.stop()
    print('churn:', ', '.join(f'{count} x {name}' for name, count in sorted(churn.counts.items())), flush=True)
    if failed:
        raise failed[0]
    return samples


def _report(recorded: History, bounds: Bounds, interval_s: float) -> int:
    """Print the figures of each interval and every violation; 1 if there is one."""
    print(interval_table(recorded, interval_s))
    found = check(recorded, bounds)
    for violation in found[:MAX_SHOWN]:
        print(describe(shrink(recorded, violation, bounds), violation))
        print('near it:', *around(recorded, violation), sep='\n  ')
    print(f'{len(recorded.requests)} requests, {len(found)} violations')
    return int(bool(found))


def interval_table(recorded: History, interval_s: float) -> str:
    """Markdown: what happened in each interval."""
    head = ('Minutes', 'Requests', 'Failed', '503, Retry-After', 'Longest wait s', 'Changes of addresses', 'Faults')
    if not recorded.requests:
        return ''
    first_s = min(request.started_s for request in recorded.requests)
    requests: dict[int, list[Request]] = {}
    for request in recorded.requests:
        requests.setdefault(int((request.started_s - first_s) / interval_s), []).append(request)
    changes = Counter(int((one.began_s - first_s) // interval_s) for one in recorded.assignments)
    faults = Counter(int((one.began_s - first_s) // interval_s) for one in recorded.faults)
    lines = [head, tuple('---' for _ in head)]
    for number, some in sorted(requests.items()):
        outcomes = Counter(request.outcome for request in some)
        longest_s = max(request.ended_s - request.started_s for request in some)
        failed = len(some) - outcomes[OK] - outcomes[RETRY_AFTER]
        minutes = f'{number * interval_s / 60:g} to {(number + 1) * interval_s / 60:g}'
        lines.append((minutes, str(len(some)), str(failed), str(outcomes[RETRY_AFTER]), f'{longest_s:.1f}',
                      str(changes[number]), str(faults[number])))  # fmt: skip
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def trend_table(found: Sequence[Trend]) -> str:
    """Markdown: the growth of each quantity after the warm-up."""
    head = ('Program', 'Quantity', 'Median', 'Growth', 'Verdict')
    lines = [head, tuple('---' for _ in head)]
    for one in found:
        verdict = 'GROWS' if one.is_growing else 'no trend'
        lines.append((one.program, one.quantity, f'{one.median:.0f}', f'{one.growth:+.1f}', verdict))
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='tox -e soak --', description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30.0, help='how long (default: %(default)s)')
    parser.add_argument('--seed', type=int, help='of the churn; default: a random one, which is printed')
    parser.add_argument('--setup', choices=SETUPS, default=CACHED, help='default: %(default)s')
    parser.add_argument('--history', help='file of the history; default: a new one')
    parser.add_argument('--interval-minutes', type=float, default=10.0, help='of the table (default: %(default)s)')
    parser.add_argument('--paste', default='', help='another paste file')
    parser.add_argument('--no-faults', action='store_true', help='only changes of the cloud')
    parser.add_argument('--check', help='only check the history in this file')
    return parser


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
