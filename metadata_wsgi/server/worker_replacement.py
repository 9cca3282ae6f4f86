# SPDX-License-Identifier: Apache-2.0
"""Which workers the master starts and stops, so that a reload leaves no moment without a worker that serves.

gunicorn stops the former workers as soon as it has forked the new ones, which need a second to load, and longer on a
busy host. Reloads that follow one another faster than that would leave connections waiting until their clients give
up. Here the former workers serve until as many new ones are ready.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class WorkerState(NamedTuple):
    """A worker as the master knows it. ``age`` counts the workers of a master; ``is_ready``: it serves."""

    pid: int
    age: int
    is_ready: bool


class Changes(NamedTuple):
    """What to do now: how many workers to start, and the pids of those to stop."""

    start: int
    stop: tuple[int, ...]


def changes(workers: Iterable[WorkerState], *, wanted: int, former_age: int) -> Changes:
    """The changes towards ``wanted`` workers that are younger than ``former_age``, the age of the last former one.

    A former worker that was still loading is stopped at once: its configuration is out of date, and it serves nobody.
    """
    in_order = sorted(workers, key=lambda worker: worker.age)
    former = [worker for worker in in_order if worker.age <= former_age]
    current = in_order[len(former) :]
    surplus = current[: max(0, len(current) - wanted)]
    kept = current[len(surplus) :]
    is_replaced = sum(worker.is_ready for worker in kept) >= wanted
    stopped = [worker for worker in former if is_replaced or not worker.is_ready] + surplus
    return Changes(wanted - len(kept), tuple(worker.pid for worker in stopped))
