# SPDX-License-Identifier: Apache-2.0
"""Circuit breaker: a host that accepts no connections gets one attempt at a time, from one request.

Without it each of a thousand waiting requests connects about once a second; with dead name servers or a firewall that
drops packets each of them also holds a connection attempt for seconds.

Only failures to connect open the circuit. Nothing that an instance sends or stores can cause them, so one instance
cannot close the service to others; a response that breaks or does not come is limited by the deadline and the retry
budget (``retry.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from metadata_wsgi import limits


class CircuitBreaker:
    """Counts consecutive connection failures of one host. For all threads of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._next_attempt_at_s = 0.0
        self.last_error = ''

    def allows_attempt(self) -> bool:
        """True if the circuit is closed, or if it is time for the next attempt. Changes nothing."""
        return self._failures < limits.CIRCUIT_OPEN_FAILURES or self._clock() >= self._next_attempt_at_s

    def start_attempt(self) -> None:
        """An attempt starts: while the circuit is open, no other one is allowed before this one ends."""
        if self._failures >= limits.CIRCUIT_OPEN_FAILURES:
            self._next_attempt_at_s = self._clock() + limits.CONNECT_TIMEOUT_S + limits.CIRCUIT_PROBE_INTERVAL_S

    def record_connected(self) -> None:
        """A connection was made: closes the circuit."""
        self._failures = 0

    def record_failure(self, error: Exception, *, had_time: bool = True) -> None:
        """A connection could not be made. The failure does not count if the attempt had no time."""
        self._failures += had_time
        self._next_attempt_at_s = self._clock() + limits.CIRCUIT_PROBE_INTERVAL_S
        self.last_error = str(error)
