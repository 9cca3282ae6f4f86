# SPDX-License-Identifier: Apache-2.0
"""Say once what is wrong: a thousand guests that meet one fault are one line in the log, not a thousand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """``due`` is true at most once in ``interval_s`` seconds. Shared by all threads of a worker."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._said_at: list[float] = []

    def allow(self) -> bool:
        """Whether it is time to say it (again)."""
        with self._lock:
            now_s = self._clock()
            if self._said_at and now_s - self._said_at[0] < self._interval_s:
                return False
            self._said_at[:] = [now_s]
            return True
