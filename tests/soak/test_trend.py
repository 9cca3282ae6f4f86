# SPDX-License-Identifier: Apache-2.0
"""A leak is a trend; noise, a warm-up and a restart are none."""

import random

import pytest

from tests.soak.trend import Sample, trends


def series(value_at, quantity='memory KiB', count=200):
    rng = random.Random(7)
    return [Sample(10.0 * n, 'agent', quantity, value_at(n) + rng.uniform(-200, 200)) for n in range(count)]


@pytest.mark.parametrize(
    ('value_at', 'is_growing'),
    [
        (lambda n: 60000, False),
        (lambda n: 60000 + 50 * n, True),
        (lambda n: min(60000, 20000 + 1000 * n), False),
        (lambda n: 20000 if 100 < n < 110 else 60000, False),
        (lambda n: 60000 - 50 * n, False),
    ],
    ids=['constant', 'leak', 'warm-up', 'restart', 'shrinking'],
)
def test_memory_trend(value_at, is_growing):
    (found,) = trends(series(value_at))
    assert found.is_growing == is_growing


def test_memory_that_grows_after_the_last_restart_is_no_trend():
    """A run of 15 minutes. The agent's last restart was after 6 minutes: 78 MiB, 5 minutes later 89 MiB."""
    restarted, warm = 36, 66
    samples = series(lambda n: 78000 + 11000 * min(1, max(0, n - restarted) / (warm - restarted)), count=91)
    (found,) = trends(samples)
    assert not found.is_growing


def test_a_leak_in_a_run_of_15_minutes_is_a_trend():
    (found,) = trends(series(lambda n: 78000 + 400 * n, count=91))
    assert found.is_growing


def test_a_run_that_is_only_warm_up_has_no_trend():
    with pytest.raises(ValueError, match='warm-up'):
        trends(series(lambda n: 60000, count=30))


def test_each_program_and_quantity_has_its_trend():
    samples = [
        Sample(10.0 * n, program, 'threads', 3 + leak * n / 10)
        for n in range(100)
        for program, leak in (('a', 0), ('b', 1))
    ]
    assert [(one.program, one.is_growing) for one in trends(samples)] == [('a', False), ('b', True)]
