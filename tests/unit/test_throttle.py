# SPDX-License-Identifier: Apache-2.0
from metadata_wsgi.throttle import KeyedThrottle, Throttle
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


def test_keyed_throttle_allows_each_key_once_an_interval():
    clock = FakeClock()
    throttle = KeyedThrottle(60, clock)
    assert [throttle.allow(key) for key in 'aabba'] == [True, False, True, False, False]
    clock.sleep(60)
    assert throttle.allow('a')


def test_keyed_throttle_has_a_bounded_number_of_keys():
    throttle = KeyedThrottle(60, FakeClock(), max_keys=2)
    assert [throttle.allow(key) for key in 'abcba'] == [True, True, True, False, True]
