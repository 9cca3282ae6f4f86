# SPDX-License-Identifier: Apache-2.0
"""Log throttling: a fault that a thousand requests meet is one line in the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """Allows one log line in each interval of ``interval_s`` seconds. For all threads of a worker."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._allowed_at_s: float | None = None

    def allow(self) -> bool:
        """True at the first call and then once in each interval. The caller logs if it is True."""
        with self._lock:
            now_s = self._clock()
            if self._allowed_at_s is not None and now_s - self._allowed_at_s < self._interval_s:
                return False
            self._allowed_at_s = now_s
            return True
