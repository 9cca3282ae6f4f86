# SPDX-License-Identifier: Apache-2.0
"""Log throttling: if a thousand requests have the same fault, one line is logged in each interval.

The usual interval is ``limits.LOG_INTERVAL_S``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable


class Throttle:
    """Allows one log line in each interval of ``interval_s`` seconds. Shared by all threads of a worker."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._allowed_at_s: float | None = None

    def allow(self) -> bool:
        """Return True at the first call, and then once in each interval. The caller logs its line if it gets True."""
        with self._lock:
            now_s = self._clock()
            if self._allowed_at_s is not None and now_s - self._allowed_at_s < self._interval_s:
                return False
            self._allowed_at_s = now_s
            return True


class KeyedThrottle:
    """A Throttle for each key: log lines about one key do not suppress lines about others.

    Shared by all threads of a worker. If there are more than ``max_keys`` keys, the oldest key is dropped, to bound the
    memory.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic, *, max_keys: int = 1024) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._max_keys = max_keys
        self._lock = threading.Lock()
        self._throttles: dict[Hashable, Throttle] = {}

    def allow(self, key: Hashable) -> bool:
        """Return True at the first call for ``key`` and then once in each interval."""
        with self._lock:
            throttle = self._throttles.get(key)
            if throttle is None:
                throttle = self._throttles[key] = Throttle(self._interval_s, self._clock)
                if len(self._throttles) > self._max_keys:
                    del self._throttles[next(iter(self._throttles))]
        return throttle.allow()
