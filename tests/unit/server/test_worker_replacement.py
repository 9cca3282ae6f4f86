# SPDX-License-Identifier: Apache-2.0
"""A reload, a crash and a change of the number of workers: who is started and who is stopped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.server.worker_replacement import Changes, WorkerState, changes

READY, LOADING = True, False


def workers(*states):
    """Workers with the ages and pids 1, 2, ..."""
    return [WorkerState(number, number, is_ready) for number, is_ready in enumerate(states, 1)]


@pytest.mark.parametrize(
    ('states', 'former_age', 'expected'),
    [
        ([], 0, Changes(2, ())),
        ([READY, READY], 0, Changes(0, ())),
        ([LOADING, LOADING], 0, Changes(0, ())),
        ([READY], 0, Changes(1, ())),
        ([READY, READY, READY], 0, Changes(0, (1,))),
        ([READY, READY], 2, Changes(2, ())),
        ([READY, READY, LOADING, LOADING], 2, Changes(0, ())),
        ([READY, READY, READY, LOADING], 2, Changes(0, ())),
        ([READY, READY, READY, READY], 2, Changes(0, (1, 2))),
        ([READY, READY, LOADING], 2, Changes(1, ())),
        ([READY, READY, LOADING, LOADING], 4, Changes(2, (3, 4))),
    ],
    ids=[
        'start', 'nothing to do', 'loading', 'crash', 'surplus', 'reload', 'new ones load', 'one is ready',
        'all are ready', 'a new one crashed', 'second reload while the first loads',
    ],
)  # fmt: skip
def test_two_workers_are_wanted(states, former_age, expected):
    assert changes(workers(*states), wanted=2, former_age=former_age) == expected


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4), st.integers(0, 12))
def test_workers_that_serve_are_stopped_only_if_enough_others_serve(states, wanted, former_age):
    known = workers(*states)
    planned = changes(known, wanted=wanted, former_age=former_age)
    serving = {worker.pid for worker in known if worker.is_ready}
    left = serving - set(planned.stop)
    if serving & set(planned.stop) and former_age < len(states):
        assert left or any(worker.age > former_age and worker.pid not in planned.stop for worker in known)
    assert planned.start >= 0
    assert planned.start + sum(worker.age > former_age for worker in known) >= wanted
    if any(worker.is_ready for worker in known if worker.age <= former_age):
        assert left, 'somebody serves'
