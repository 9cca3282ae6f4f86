# SPDX-License-Identifier: Apache-2.0
"""Circuit breaker: while a host accepts no connections, only one request at a time tries to connect.

Without it each of a thousand waiting requests would connect about once a second. If name servers do not respond or a
firewall drops packets, each attempt also takes seconds.

Only failures to connect open the circuit. An instance cannot cause such a failure, so it cannot make the service
unavailable for others. Responses that are incomplete or do not arrive do not open the circuit: the deadline and the
retry budget (``retry.py``) limit them.
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
        """Whether the circuit is closed, or it is time for the next attempt. Changes nothing."""
        return self._failures < limits.CIRCUIT_OPEN_FAILURES or self._clock() >= self._next_attempt_at_s

    def start_attempt(self) -> None:
        """Call when an attempt starts. While the circuit is open, no other attempt is allowed until this one ends."""
        if self._failures >= limits.CIRCUIT_OPEN_FAILURES:
            self._next_attempt_at_s = self._clock() + limits.CONNECT_TIMEOUT_S + limits.CIRCUIT_PROBE_INTERVAL_S

    def record_connected(self) -> None:
        """Close the circuit: a connection was made."""
        self._failures = 0

    def record_failure(self, error: Exception, *, had_time: bool = True) -> None:
        """Count a failure to connect. With ``had_time`` False it is not counted: the attempt had too little time."""
        self._failures += had_time
        self._next_attempt_at_s = self._clock() + limits.CIRCUIT_PROBE_INTERVAL_S
        self.last_error = str(error)
