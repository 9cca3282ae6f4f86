# SPDX-License-Identifier: Apache-2.0
from metadata_wsgi.throttle import Throttle
from tests.fakes import FakeClock


def test_it_is_said_once_an_interval():
    clock = FakeClock()
    seldom = Throttle(60, clock)
    said = []
    for _ in range(5):
        said.append(seldom.allow())
        clock.sleep(25)
    assert said == [True, False, False, True, False]


def test_the_first_time_is_due_whatever_the_clock_says():
    assert Throttle(60, FakeClock(0.0)).allow()
