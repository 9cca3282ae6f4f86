# SPDX-License-Identifier: Apache-2.0
"""Ask again, within the deadline: a guest that hears of a fault may give up for good.

cloud-init before 25.1 drops user-data after a single 500 or 503, and gives up the datasource after a
single 404; it waits 10 s for each answer. So a read that fails is repeated here, on the host, after
a random pause of up to 50 ms that doubles to at most 1 s, and the guest hears of the fault only when
its time is over. The randomness keeps a thousand guests from knocking at the same moment when Nova
comes back.

The loop is ours because every request passes through it several times: tenacity took 30 microseconds
each time nothing failed.
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
    """Call ``attempt`` until it neither raises one of ``retry_on`` nor returns what ``retry_if_result`` rejects.

    When the deadline forbids another try, the last result is returned, or the last exception raised.
    """
    longest_s = limits.RETRY_BASE_DELAY_S
    while True:
        try:
            result = attempt()
            if not retry_if_result(result):
                return result
            pause_s = _pause_s(deadline, longest_s)
            if pause_s is None:
                return result
        except retry_on:
            pause_s = _pause_s(deadline, longest_s)
            if pause_s is None:
                raise
        sleep(pause_s)
        longest_s = min(2 * longest_s, limits.RETRY_MAX_DELAY_S)


def _pause_s(deadline: Deadline, longest_s: float) -> float | None:
    """How long to wait for the next try, None where there is no time for one."""
    pause_s = random.uniform(0, longest_s)  # noqa: S311 (no secret, only spread)
    return pause_s if deadline.remaining_s() - pause_s >= limits.RETRY_MIN_TIME_FOR_ATTEMPT_S else None
