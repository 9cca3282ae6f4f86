# SPDX-License-Identifier: Apache-2.0
"""Samples memory, descriptors, threads and connections of each program of a host."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.host import Host
from tests.soak.trend import Sample


def sample(host: Host) -> list[Sample]:
    """The values of each program, its workers included."""
    now_s = time.monotonic()
    samples = []
    for name, unit in host.units.items():
        totals = {'memory KiB': 0.0, 'descriptors': 0.0, 'threads': 0.0, 'connections': 0.0}
        for pid in (unit.pid, *unit.children()):
            with contextlib.suppress(OSError, ValueError):
                for quantity, value in _values(pid):
                    totals[quantity] += value
        samples += [Sample(now_s, name, quantity, value) for quantity, value in totals.items()]
    return samples


def _values(pid: int) -> Iterator[tuple[str, float]]:
    process = Path(f'/proc/{pid}')
    status = dict(line.split(':', 1) for line in (process / 'status').read_text().splitlines())
    rollup = dict(line.split(':', 1) for line in (process / 'smaps_rollup').read_text().splitlines()[1:])
    descriptors = [os.readlink(entry.path) for entry in os.scandir(process / 'fd')]
    yield 'memory KiB', float(rollup['Pss'].split()[0])
    yield 'descriptors', len(descriptors)
    yield 'threads', float(status['Threads'])
    yield 'connections', sum(link.startswith('socket:') for link in descriptors)
