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


def test_each_program_and_quantity_has_its_trend():
    samples = [
        Sample(n, program, 'threads', 3 + leak * n / 10) for n in range(100) for program, leak in (('a', 0), ('b', 1))
    ]
    assert [(one.program, one.is_growing) for one in trends(samples)] == [('a', False), ('b', True)]
