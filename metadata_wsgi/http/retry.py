# SPDX-License-Identifier: Apache-2.0
"""Retry within the deadline of a request, with exponential backoff and jitter.

A client that receives an error may give up for good: cloud-init before 25.1 drops the user-data after a single 500 or
503, and the whole datasource after a single 404. It waits 10 s for a response. So a failed GET or HEAD is retried
here, on the host, and the client receives an error only at the deadline. The first delay is random, up to
``limits.RETRY_BASE_DELAY_S``; the upper bound doubles to ``limits.RETRY_MAX_DELAY_S``. The jitter spreads the retries
of a thousand clients when Nova becomes available again.

A RetryBudget bounds the retries of all requests together (``limits.RETRY_BUDGET_*``). Without it every request to a
Nova that answers 500 to everything would be sent about ten times. A request that finds the budget empty is not given
up: it waits, and is retried when the budget allows it, or gets its response at the deadline.

The loop is not a library's because each request passes through it several times: tenacity took 30 microseconds where
nothing failed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline, sleep

T = TypeVar('T')


def retry_until(
    attempt: Callable[[], T],
    deadline: Deadline,
    *,
    service: str,
    retry_on: tuple[type[Exception], ...] = (),
    retry_if_result: Callable[[T], bool] = lambda result: False,
    may_retry: Callable[[], bool] = lambda: True,
    sleep: Callable[[float], None] = sleep,
) -> T:
    """Call ``attempt`` again while it raises one of ``retry_on`` or ``retry_if_result(its result)`` is true.

    Before each retry there is a delay; ``may_retry`` is called after it, and where it returns False there is another
    delay. When there is no time for another attempt before ``deadline``, the last result is returned or the last
    exception raised. The first attempt is made in any case. ``service`` is the label of the metric of retries.
    """
    delays: _Delays | None = None
    while True:
        try:
            result = attempt()
            if not retry_if_result(result):
                return result
            delays = delays or _Delays(deadline, may_retry, sleep)
            if not delays.wait():
                return result
            instruments.RETRIES.add(service)
        except retry_on:
            delays = delays or _Delays(deadline, may_retry, sleep)
            if not delays.wait():
                raise
            instruments.RETRIES.add(service)


class _Delays:
    """The delays of one request."""

    def __init__(self, deadline: Deadline, may_retry: Callable[[], bool], sleep: Callable[[float], None]) -> None:
        self._deadline = deadline
        self._may_retry = may_retry
        self._sleep = sleep
        self._max_delay_s = limits.RETRY_BASE_DELAY_S

    def wait(self) -> bool:
        """Wait until a retry is allowed; False, without a wait, if there is no time for one."""
        while True:
            delay_s = random.uniform(0, self._max_delay_s)  # noqa: S311 (not a secret)
            if self._deadline.remaining_s() - delay_s < limits.RETRY_MIN_TIME_FOR_ATTEMPT_S:
                return False
            self._sleep(delay_s)
            self._max_delay_s = min(2 * self._max_delay_s, limits.RETRY_MAX_DELAY_S)
            if self._may_retry():
                return True


class RetryBudget:
    """How many retries all requests to one service may make together: a token bucket. For all threads of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._retries = limits.RETRY_BUDGET_MAX
        self._refilled_at_s = clock()

    def add_request(self) -> None:
        """A request was received."""
        self._add(limits.RETRY_BUDGET_PER_REQUEST)

    def add_success(self) -> None:
        """The service responded as it should."""
        self._add(limits.RETRY_BUDGET_PER_SUCCESS)

    def take_retry(self) -> bool:
        """Take one retry out of the budget; False if it is empty."""
        now_s = self._clock()
        self._add((now_s - self._refilled_at_s) * limits.RETRY_BUDGET_PER_S)
        self._refilled_at_s = now_s
        if self._retries < 1:
            return False
        self._retries -= 1
        return True

    def _add(self, retries: float) -> None:
        if self._retries < limits.RETRY_BUDGET_MAX:
            self._retries = min(self._retries + retries, limits.RETRY_BUDGET_MAX)
