# SPDX-License-Identifier: Apache-2.0
"""The hosts of Nova's metadata API: selects the host that gets a request.

Hosts are tried in the configured order. After a failure a host is tried after the others for
``limits.NOVA_HOST_BACKOFF_S`` seconds. A host that accepts no connections gets one attempt at a time (circuit breaker).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import MaybeSent, NoResponse, NotSent
from metadata_wsgi.http.circuit_breaker import CircuitBreaker
from metadata_wsgi.http.client import HttpClient
from metadata_wsgi.http.message import Request, Response
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

RETRYABLE_STATUSES = frozenset({500, 502, 503, 504})
"""Nova answers these while something that it needs is unavailable. Every other status is relayed at once."""


class Hosts:
    """All hosts of Nova. For all threads of a worker. ``clients`` has at least one."""

    def __init__(self, clients: Sequence[HttpClient], clock: Callable[[], float]) -> None:
        self._hosts = [_Host(client, clock) for client in clients]

    def accept_attempt(self) -> bool:
        """Whether an attempt could be sent to any host now."""
        return any(host.circuit.allows_attempt() for host in self._hosts)

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """One attempt at each host until one succeeds; returns or raises the outcome of the last one."""
        hosts = self._in_order()
        if not hosts:
            raise NotSent(self._hosts[-1].circuit.last_error)
        for host in hosts:
            is_last = host is hosts[-1]
            try:
                # A host that does not respond must leave time for another attempt.
                response = host.send_request(request, deadline.fraction(2 / 3) if request.is_retryable else deadline)
            except NoResponse as error:
                host.back_off(error)
                if is_last or not (request.is_retryable or isinstance(error, NotSent)):
                    raise
                continue
            if is_last or not request.is_retryable or response.status not in RETRYABLE_STATUSES:
                host.end_backoff()
                return response
            host.back_off(f'it answered {response.status}')
        raise AssertionError('the last host returns or raises')

    def _in_order(self) -> list[_Host]:
        if not any(host.has_failed for host in self._hosts):
            return self._hosts
        allowed = [host for host in self._hosts if host.circuit.allows_attempt()]
        return sorted(allowed, key=lambda host: host.is_backed_off())


class _Host:
    """A host, and its health."""

    def __init__(self, client: HttpClient, clock: Callable[[], float]) -> None:
        self.circuit = CircuitBreaker(clock)
        self.has_failed = False
        """Since its last response; a host that has not is neither backed off nor without connections."""
        self._client = client
        self._clock = clock
        self._backed_off_until_s = 0.0
        self._failure_log = Throttle(limits.LOG_INTERVAL_S, clock)

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """As HttpClient; records whether a connection was made."""
        started_s = self._clock()
        if self.has_failed:
            self.circuit.start_attempt()
        try:
            response = self._client.send_request(request, deadline)
        except NotSent as error:
            instruments.SERVICE_SECONDS.observe(self._clock() - started_s, 'nova', 'error')
            had_time = deadline.at_s - started_s >= limits.CIRCUIT_MIN_TIME_S
            self.circuit.record_failure(error, had_time=had_time)
            raise
        except MaybeSent:
            instruments.SERVICE_SECONDS.observe(self._clock() - started_s, 'nova', 'error')
            self.circuit.record_connected()
            raise
        outcome = 'error' if response.status in RETRYABLE_STATUSES else 'ok'
        instruments.SERVICE_SECONDS.observe(self._clock() - started_s, 'nova', outcome)
        if self.has_failed:
            self.circuit.record_connected()
        return response

    def is_backed_off(self) -> bool:
        """Whether the host is tried after the others."""
        return self.has_failed and self._backed_off_until_s > self._clock()

    def back_off(self, reason: object) -> None:
        """The host failed: try it after the others for a while."""
        if not self.is_backed_off() and self._failure_log.allow():
            LOG.warning('Nova at %s fails: %s', self._client.name, reason)
        instruments.NOVA_HOST_FAILURES.add(self._client.name)
        instruments.NOVA_HOST_SET_ASIDE.set(1, self._client.name)
        self._backed_off_until_s = self._clock() + limits.NOVA_HOST_BACKOFF_S
        self.has_failed = True

    def end_backoff(self) -> None:
        """The host works."""
        if self.has_failed:
            instruments.NOVA_HOST_SET_ASIDE.set(0, self._client.name)
        self.has_failed = False
