# SPDX-License-Identifier: Apache-2.0
from metadata_wsgi.throttle import Throttle
from tests.fakes import FakeClock


def test_a_throttle_allows_one_log_line_in_each_interval():
    clock = FakeClock()
    throttle = Throttle(60, clock)
    allowed = []
    for _ in range(5):
        allowed.append(throttle.allow())
        clock.sleep(25)
    assert allowed == [True, False, False, True, False]


def test_a_throttle_allows_the_first_line_whatever_the_clock_reads():
    assert Throttle(60, FakeClock(0.0)).allow()
