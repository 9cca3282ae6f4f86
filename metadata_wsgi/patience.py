# SPDX-License-Identifier: Apache-2.0
"""Ask again, within the deadline: a guest that hears of a fault may give up for good.

cloud-init before 25.1 drops user-data after a single 500 or 503, and gives up the datasource after a
single 404; it waits 10 s for each answer. So a read that fails is repeated here, on the host, after
a random pause that doubles from 50 ms to 1 s, and the guest hears of the fault only when its time is
over. The randomness keeps a thousand guests from knocking at the same moment when Nova comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from metadata_wsgi.context import Deadline

T = TypeVar('T')

LAST_TRY_S = 0.05
"""With less than this left, no further try is begun."""


def insist(
    attempt: Callable[[], T],
    deadline: Deadline,
    *,
    again_after: tuple[type[Exception], ...] = (),
    again_on: Callable[[T], bool] = lambda result: False,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call ``attempt`` until it neither raises one of ``again_after`` nor returns what ``again_on`` rejects.

    When the deadline forbids another try, the last result is returned, or the last exception raised.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(again_after) | tenacity.retry_if_result(again_on),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        stop=lambda state: deadline.remaining_s() - state.upcoming_sleep < LAST_TRY_S,
        sleep=sleep,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )(attempt)
