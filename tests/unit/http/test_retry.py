# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import MaybeSent, NotSent
from metadata_wsgi.http.retry import RetryBudget, retry_until
from tests.fakes import FakeClock


def failing(error, calls=None):
    def attempt():
        if calls is not None:
            calls.append(1)
        raise error

    return attempt


def retry(attempt, clock, *, within_s=9, **options):
    """``retry_until`` with the deadline and the sleep of ``clock``; NotSent is retried."""
    deadline = Deadline.after(within_s, clock)
    return retry_until(attempt, deadline, service='nova', retry_on=(NotSent,), sleep=clock.sleep, **options)


def test_a_success_is_not_retried():
    clock = FakeClock()
    assert retry(lambda: 'x', clock) == 'x'
    assert clock.slept == []


def test_a_failure_is_retried_until_it_succeeds():
    outcomes = iter([NotSent('1'), NotSent('2'), 'x'])

    def attempt():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    clock = FakeClock()
    assert retry(attempt, clock) == 'x'
    assert len(clock.slept) == 2


def test_another_exception_is_raised_without_a_retry():
    clock, calls = FakeClock(), []
    with pytest.raises(MaybeSent):
        retry(failing(MaybeSent('x'), calls), clock)
    assert len(calls) == 1


@pytest.mark.parametrize('within_s', [9, 0.9])
def test_the_exception_of_the_last_attempt_that_had_time_is_raised_after_the_last_retry(within_s):
    """An attempt without time fails for lack of time, which hides the cause."""
    clock = FakeClock()
    remaining_s = []

    def attempt():
        remaining_s.append(1000 + within_s - clock.now_s)
        raise NotSent(str(len(remaining_s)))

    with pytest.raises(NotSent) as raised:
        retry(attempt, clock, within_s=within_s)
    with_time = [number for number, time_s in enumerate(remaining_s, 1) if time_s >= 1]
    assert str(raised.value) == str(with_time[-1] if within_s == 9 else 1)
    assert len(with_time) < len(remaining_s)


def test_the_last_result_is_returned_after_the_last_retry():
    clock = FakeClock()
    assert retry(lambda: 503, clock, retry_if_result=lambda status: status == 503) == 503
    assert len(clock.slept) > 5


def test_the_last_result_is_returned_if_a_later_retry_gets_none():
    """The last retry may have too little time for a response."""
    clock = FakeClock()
    results = itertools.chain([502], itertools.repeat(None))

    def attempt():
        if result := next(results):
            return result
        raise NotSent('no time was left to connect')

    assert retry(attempt, clock, retry_if_result=lambda status: status == 502) == 502


def test_the_first_attempt_is_made_even_after_the_deadline():
    clock, calls = FakeClock(), []
    with pytest.raises(NotSent):
        retry(failing(NotSent('x'), calls), clock, within_s=0)
    assert (len(calls), clock.slept) == (1, [])


@given(st.floats(0, 30), st.floats(0, 5))
def test_no_retry_starts_after_the_deadline(within_s, attempt_takes_s):
    clock = FakeClock()
    starts = []

    def attempt():
        starts.append(clock.now_s)
        clock.now_s += attempt_takes_s
        raise NotSent('x')

    with pytest.raises(NotSent):
        retry(attempt, clock, within_s=within_s)
    assert all(moment <= 1000.0 + within_s for moment in starts)
    assert sum(clock.slept) <= within_s


def test_the_retry_delays_grow_to_their_maximum_with_jitter():
    """Over many runs: each delay is below its bound, which doubles up to a second, and comes close to it."""
    runs = [retry_delays() for _ in range(300)]
    bounds = [min(1.0, 0.05 * 2**number) for number in range(12)]
    for number, bound in enumerate(bounds):
        delays = [run[number] for run in runs]
        assert all(0 <= delay <= bound for delay in delays)
        assert max(delays) > 0.8 * bound
        assert min(delays) < 0.2 * bound


def retry_delays():
    clock = FakeClock()
    with pytest.raises(NotSent):
        retry(failing(NotSent('x')), clock, within_s=60)
    return clock.slept


def test_a_retry_waits_until_it_is_allowed():
    clock = FakeClock()
    outcomes, allowed = iter([503, 200]), iter([False, False, True])
    result = retry(
        lambda: next(outcomes), clock, retry_if_result=lambda status: status == 503, may_retry=lambda: next(allowed)
    )
    assert (result, len(clock.slept)) == (200, 3)


def test_without_an_allowed_retry_the_first_result_is_returned_at_the_deadline():
    clock = FakeClock()
    attempts = []
    result = retry(
        lambda: attempts.append(1) or 503, clock, retry_if_result=lambda status: status == 503, may_retry=lambda: False
    )
    assert (result, len(attempts)) == (503, 1)
    assert 1007 < clock.now_s <= 1009


def taken(budget):
    """How many retries are in the budget now."""
    return sum(iter(budget.take_retry, False))


def test_the_retry_budget_is_shared_and_refilled_by_requests_successes_and_time():
    clock = FakeClock()
    budget = RetryBudget(clock)
    assert taken(budget) == limits.RETRY_BUDGET_MAX
    for _ in range(7):
        budget.add_request()
    assert taken(budget) == 7 * limits.RETRY_BUDGET_PER_REQUEST
    budget.add_success()
    assert taken(budget) == limits.RETRY_BUDGET_PER_SUCCESS
    clock.sleep(2)
    assert taken(budget) == 2 * limits.RETRY_BUDGET_PER_S
    clock.sleep(1e6)
    assert taken(budget) == limits.RETRY_BUDGET_MAX
