# SPDX-License-Identifier: Apache-2.0
"""Circuit breaker: while a host accepts no connections, only one request at a time tries to connect.

Without a circuit breaker each of a thousand waiting requests would try to connect about once a second. If name servers
do not respond or a firewall drops packets, each attempt also takes seconds.

Only failures to connect open the circuit (for Keystone, every failure). An instance cannot cause such a failure, so no
instance can make the service unavailable for others. An incomplete or missing response of Nova or Neutron does not open
the circuit. In this case the deadline and the retry budget (``retry.py``) limit the attempts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from metadata_wsgi import limits


class CircuitBreaker:
    """Counts consecutive connection failures of one host. Shared by all threads of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._next_attempt_at_s = 0.0
        self.last_error = ''

    def allows_attempt(self, *, has_time: bool = True) -> bool:
        """Whether the circuit is closed, or it is time for the next attempt. Changes nothing.

        If ``has_time`` is False, the attempt has too little time to show whether the host is back. If the circuit is
        open, it is allowed only ``limits.CIRCUIT_PROBE_INTERVAL_S`` later. So attempts with time come first.
        """
        if self._failures < limits.CIRCUIT_OPEN_FAILURES:
            return True
        return self._clock() >= self._next_attempt_at_s + (0.0 if has_time else limits.CIRCUIT_PROBE_INTERVAL_S)

    def start_attempt(self) -> None:
        """Call when an attempt starts. If the circuit is open, the next attempt is allowed after this one has ended."""
        if self._failures >= limits.CIRCUIT_OPEN_FAILURES:
            self._next_attempt_at_s = self._clock() + limits.CONNECT_TIMEOUT_S + limits.CIRCUIT_PROBE_INTERVAL_S

    def record_connected(self) -> None:
        """Close the circuit: a connection was made."""
        self._failures = 0

    def record_failure(self, error: Exception, *, had_time: bool = True) -> None:
        """Count a failure to connect. If ``had_time`` is False, the attempt had too little time and is not counted."""
        self._failures += had_time
        self._next_attempt_at_s = self._clock() + limits.CIRCUIT_PROBE_INTERVAL_S
        self.last_error = str(error)
