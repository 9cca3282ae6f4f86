# SPDX-License-Identifier: Apache-2.0
"""Decides which workers the master starts and stops, so that during a reload there is always a worker that serves.

gunicorn stops the former workers as soon as it has forked the new ones. New workers need a second to load, and longer
on a busy host. If a second reload begins before the new workers have loaded, no worker serves, and connections wait
until their clients give up. With this module the former workers serve until as many new workers are ready.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class WorkerState(NamedTuple):
    """The state of a worker in the master. ``age`` is gunicorn's number of the worker; later workers have higher ones.

    ``is_ready``: the worker serves.
    """

    pid: int
    age: int
    is_ready: bool


class Changes(NamedTuple):
    """The number of workers to start now, and the pids of the workers to stop now."""

    start: int
    stop: tuple[int, ...]


def changes(workers: Iterable[WorkerState], *, wanted: int, former_age: int) -> Changes:
    """The changes that lead to ``wanted`` workers with an ``age`` above ``former_age``.

    ``former_age`` is the ``age`` of the last worker that must be replaced. A former worker that is still loading is
    stopped at once, because its configuration is out of date and it does not serve yet.
    """
    in_order = sorted(workers, key=lambda worker: worker.age)
    former = [worker for worker in in_order if worker.age <= former_age]
    current = in_order[len(former) :]
    surplus = current[: max(0, len(current) - wanted)]
    kept = current[len(surplus) :]
    is_replaced = sum(worker.is_ready for worker in kept) >= wanted
    stopped = [worker for worker in former if is_replaced or not worker.is_ready] + surplus
    return Changes(wanted - len(kept), tuple(worker.pid for worker in stopped))
