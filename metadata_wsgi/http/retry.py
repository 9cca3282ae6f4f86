# SPDX-License-Identifier: Apache-2.0
"""Retry within the deadline of a request, with exponential backoff and jitter.

A client that receives an error may give up for good. The OpenStack datasource of cloud-init 22.4.2 does not repeat a
request after any status of 400 or more (``doc/cloud_init.md``). cloud-init waits 10 s for a response. So a failed GET
or HEAD is retried here, on the host, and the client receives an error only at the deadline.

The delay before a retry is random. Its upper bound starts at ``limits.RETRY_BASE_DELAY_S`` and doubles with each retry,
up to ``limits.RETRY_MAX_DELAY_S``. The random delays spread the retries of a thousand clients when Nova becomes
available again.

A RetryBudget limits the retries of all requests together (``limits.RETRY_BUDGET_*``). Without a budget, if Nova
responds 500 to everything, every request would be sent about ten times. While the budget is empty, a failed request
waits until the budget allows a retry. If no retry is possible before the deadline, the client gets the last response.

No library is used, because each request passes through this loop several times, and tenacity takes 30 microseconds even
if nothing fails.
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
    """Call ``attempt``. Retry while it raises one of ``retry_on``, or ``retry_if_result`` returns True for its result.

    There is a delay before each retry. After the delay ``may_retry`` is called. If it returns False, there is another
    delay. When there is no time for another attempt before ``deadline``, the last result is returned. If no attempt had
    a result, an exception is raised: that of the last attempt that had ``limits.CIRCUIT_MIN_TIME_S``, else that of the
    first attempt. A later attempt fails for lack of time, which hides the cause. The first attempt is always made.
    ``service`` is a label of the metric that counts retries.
    """
    delays: _Delays | None = None
    has_result = False
    failure: Exception | None = None
    while True:
        has_time = deadline.remaining_s() >= limits.CIRCUIT_MIN_TIME_S
        try:
            result = attempt()
            has_result = True
            if not retry_if_result(result):
                return result
            delays = delays or _Delays(deadline, may_retry, sleep)
            if not delays.wait():
                return result
            instruments.RETRIES.add(service)
        except retry_on as error:
            if failure is None or has_time:
                failure = error
            delays = delays or _Delays(deadline, may_retry, sleep)
            if not delays.wait():
                if has_result:
                    return result
                raise failure from failure.__cause__
            instruments.RETRIES.add(service)


class _Delays:
    """The delays of one request."""

    def __init__(self, deadline: Deadline, may_retry: Callable[[], bool], sleep: Callable[[float], None]) -> None:
        self._deadline = deadline
        self._may_retry = may_retry
        self._sleep = sleep
        self._max_delay_s = limits.RETRY_BASE_DELAY_S

    def wait(self) -> bool:
        """Wait until a retry is allowed. Returns False as soon as there is no time for a retry."""
        while True:
            delay_s = random.uniform(0, self._max_delay_s)  # noqa: S311 (not a secret)
            if self._deadline.remaining_s() - delay_s < limits.RETRY_MIN_TIME_FOR_ATTEMPT_S:
                return False
            self._sleep(delay_s)
            self._max_delay_s = min(2 * self._max_delay_s, limits.RETRY_MAX_DELAY_S)
            if self._may_retry():
                return True


class RetryBudget:
    """Limits the retries of all requests to one service together: a token bucket. Shared by all threads of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._retries = limits.RETRY_BUDGET_MAX
        self._refilled_at_s = clock()

    def add_request(self) -> None:
        """Call for each request of a client."""
        if self._retries < limits.RETRY_BUDGET_MAX:
            self._add(limits.RETRY_BUDGET_PER_REQUEST)

    def add_success(self) -> None:
        """Call for each successful response of the service."""
        if self._retries < limits.RETRY_BUDGET_MAX:
            self._add(limits.RETRY_BUDGET_PER_SUCCESS)

    def take_retry(self) -> bool:
        """Take one retry out of the budget; False if the budget is empty."""
        now_s = self._clock()
        self._add((now_s - self._refilled_at_s) * limits.RETRY_BUDGET_PER_S)
        self._refilled_at_s = now_s
        if self._retries < 1:
            return False
        self._retries -= 1
        return True

    def _add(self, retries: float) -> None:
        self._retries = min(self._retries + retries, limits.RETRY_BUDGET_MAX)
