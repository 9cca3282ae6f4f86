# SPDX-License-Identifier: Apache-2.0
"""Whether a series of samples grows: memory, descriptors, threads, connections of each program."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

MAX_SAMPLES = 120
RESTART_SHARE = 0.4
"""Programs are killed, reloaded and restarted only in this first part of a run."""
WARM_UP_S = 300.0
"""After a start the memory of the agent grows by 11 MiB in this time: connection pools, caches and the allocator fill
up. A leak continues."""


@dataclass(frozen=True)
class Sample:
    """One value of one program at one time."""

    at_s: float
    program: str
    quantity: str
    value: float


@dataclass(frozen=True)
class Tolerance:
    """Growth over the measured time that is no trend: at most ``share`` of the median, or ``amount``."""

    share: float
    amount: float


POOL_OF_ONE_SERVICE = 40.0
"""20 instances, two workers of the agent. Such a pool fills when a service hangs, and keeps its idle connections."""

TOLERANCES: Mapping[str, Tolerance] = {
    'memory KiB': Tolerance(0.05, 2048),
    'descriptors': Tolerance(0.1, POOL_OF_ONE_SERVICE),
    'threads': Tolerance(0.0, 2),
    'connections': Tolerance(0.1, POOL_OF_ONE_SERVICE),
}


@dataclass(frozen=True)
class Trend:
    """Growth of one quantity of one program in the part of the run after the last restart and its warm-up."""

    program: str
    quantity: str
    median: float
    growth: float
    is_growing: bool


def trends(samples: Iterable[Sample], tolerances: Mapping[str, Tolerance] = TOLERANCES) -> list[Trend]:
    """One for each program and quantity. Raises ValueError if the run ended before the end of the warm-up."""
    series: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        series[sample.program, sample.quantity].append(sample)
    return [
        _trend(program, quantity, values, tolerances[quantity])
        for (program, quantity), values in sorted(series.items())
    ]


def _trend(program: str, quantity: str, samples: Sequence[Sample], tolerance: Tolerance) -> Trend:
    samples = sorted(samples, key=lambda one: one.at_s)
    first_s, last_s = samples[0].at_s, samples[-1].at_s
    measured_from_s = first_s + RESTART_SHARE * (last_s - first_s) + WARM_UP_S
    measured = [sample for sample in samples if sample.at_s >= measured_from_s]
    if not measured:
        raise ValueError(f'no trend: {last_s - first_s:.0f} s of samples are warm-up')
    median = statistics.median(sample.value for sample in measured)
    thinned = measured[:: max(1, len(measured) // MAX_SAMPLES)]
    growth = _slope(thinned) * (measured[-1].at_s - measured[0].at_s)
    allowed = max(tolerance.share * median, tolerance.amount)
    return Trend(program, quantity, median, growth, growth > allowed)


def _slope(samples: Sequence[Sample]) -> float:
    """Theil-Sen: the median slope of all pairs. A few outliers, such as a restart, do not change it."""
    slopes = [
        (later.value - earlier.value) / (later.at_s - earlier.at_s)
        for earlier, later in combinations(samples, 2)
        if later.at_s > earlier.at_s
    ]
    return statistics.median(slopes) if slopes else 0.0
