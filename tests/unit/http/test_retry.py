# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import MaybeSent, NotSent
from metadata_wsgi.http.retry import retry_until
from tests.fakes import FakeClock


def failing(error, calls=None):
    def attempt():
        if calls is not None:
            calls.append(1)
        raise error

    return attempt


def test_what_succeeds_is_asked_once():
    clock = FakeClock()
    assert retry_until(lambda: 'x', Deadline.after(9, clock), retry_on=(NotSent,), sleep=clock.sleep) == 'x'
    assert clock.slept == []


def test_it_is_asked_again_until_it_succeeds():
    outcomes = iter([NotSent('1'), NotSent('2'), 'x'])

    def attempt():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    clock = FakeClock()
    assert retry_until(attempt, Deadline.after(9, clock), retry_on=(NotSent,), sleep=clock.sleep) == 'x'
    assert len(clock.slept) == 2


def test_another_exception_is_raised_at_once():
    clock, calls = FakeClock(), []
    with pytest.raises(MaybeSent):
        retry_until(failing(MaybeSent('x'), calls), Deadline.after(9, clock), retry_on=(NotSent,), sleep=clock.sleep)
    assert len(calls) == 1


def test_the_last_exception_is_raised_itself():
    clock = FakeClock()
    numbered = itertools.count()

    def attempt():
        raise NotSent(str(next(numbered)))

    with pytest.raises(NotSent) as raised:
        retry_until(attempt, Deadline.after(9, clock), retry_on=(NotSent,), sleep=clock.sleep)
    assert str(raised.value) == str(next(numbered) - 1)


def test_the_last_rejected_result_is_returned():
    clock = FakeClock()
    assert (
        retry_until(
            lambda: 503, Deadline.after(9, clock), retry_if_result=lambda status: status == 503, sleep=clock.sleep
        )
        == 503
    )
    assert len(clock.slept) > 5


def test_one_try_is_made_even_when_no_time_is_left():
    clock, calls = FakeClock(), []
    with pytest.raises(NotSent):
        retry_until(failing(NotSent('x'), calls), Deadline.after(0, clock), retry_on=(NotSent,), sleep=clock.sleep)
    assert (len(calls), clock.slept) == (1, [])


@given(st.floats(0, 30), st.floats(0, 5))
def test_no_try_begins_after_the_deadline(within_s, attempt_takes_s):
    clock = FakeClock()
    began = []

    def attempt():
        began.append(clock.now_s)
        clock.now_s += attempt_takes_s
        raise NotSent('x')

    with pytest.raises(NotSent):
        retry_until(attempt, Deadline.after(within_s, clock), retry_on=(NotSent,), sleep=clock.sleep)
    assert all(moment <= 1000.0 + within_s for moment in began)
    assert sum(clock.slept) <= within_s


@given(st.integers())
def test_pauses_grow_to_a_second_and_no_further(seed):
    clock = FakeClock()
    with pytest.raises(NotSent):
        retry_until(failing(NotSent('x')), Deadline.after(60, clock), retry_on=(NotSent,), sleep=clock.sleep)
    assert all(0 <= pause <= min(1.0, 0.05 * 2**number) for number, pause in enumerate(clock.slept))
