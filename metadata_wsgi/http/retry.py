# SPDX-License-Identifier: Apache-2.0
"""Retry within the deadline of a request, with exponential backoff and jitter.

A client that receives an error may give up for good: cloud-init before 25.1 drops the user-data after a single 500 or
503, and the whole datasource after a single 404. It waits 10 s for a response. So a failed GET or HEAD is retried
here, on the host, and the client receives an error only at the deadline. The first delay is random, up to
``limits.RETRY_BASE_DELAY_S``; the upper bound doubles to ``limits.RETRY_MAX_DELAY_S``. The jitter spreads the retries
of a thousand clients when Nova becomes available again.

The loop is not a library's because each request passes through it several times: tenacity took 30 microseconds where
nothing failed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline

T = TypeVar('T')


def retry_until(
    attempt: Callable[[], T],
    deadline: Deadline,
    *,
    retry_on: tuple[type[Exception], ...] = (),
    retry_if_result: Callable[[T], bool] = lambda result: False,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call ``attempt`` again while it raises one of ``retry_on`` or ``retry_if_result(its result)`` is true.

    When there is no time for another attempt before ``deadline``, the last result is returned or the last exception
    raised. The first attempt is made in any case.
    """
    max_delay_s = limits.RETRY_BASE_DELAY_S
    while True:
        try:
            result = attempt()
            if not retry_if_result(result):
                return result
            delay_s = _delay_s(deadline, max_delay_s)
            if delay_s is None:
                return result
        except retry_on:
            delay_s = _delay_s(deadline, max_delay_s)
            if delay_s is None:
                raise
        sleep(delay_s)
        max_delay_s = min(2 * max_delay_s, limits.RETRY_MAX_DELAY_S)


def _delay_s(deadline: Deadline, max_delay_s: float) -> float | None:
    """The delay before the next attempt, None where there is no time for one."""
    delay_s = random.uniform(0, max_delay_s)  # noqa: S311 (not a secret)
    return delay_s if deadline.remaining_s() - delay_s >= limits.RETRY_MIN_TIME_FOR_ATTEMPT_S else None
