# SPDX-License-Identifier: Apache-2.0
"""The hosts of Nova's metadata API: selects the host that gets a request.

A request is sent to the first configured host. If this host fails, the request is sent to the next one. For
``limits.NOVA_HOST_BACKOFF_S`` seconds after a failure, a host stands last in the order. After this time one request
tries the host. Until the host responds, it stays last for all other requests. Otherwise each of them would wait for
seconds if the host hangs.

Nova may respond 500 to a request of one instance, whatever the host. So a status of ``RETRYABLE_STATUSES`` is a failure
of the host only if another host then gives a better response to the same request. If an attempt with less than
``limits.CIRCUIT_MIN_TIME_S`` gets no response, this is no failure of the host either. While a host accepts no
connections, only one request at a time tries to connect to it (circuit breaker).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import MaybeSent, NoResponse, NotSent
from metadata_wsgi.http.circuit_breaker import CircuitBreaker
from metadata_wsgi.http.client import HttpClient, header_bytes
from metadata_wsgi.http.message import Request, Response
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

RETRYABLE_STATUSES = frozenset({500, 502, 503, 504})
"""Statuses of Nova while Nova, or a service that Nova needs, is unavailable. Other statuses are not retried."""


class Hosts:
    """All hosts of Nova. Shared by all threads of a worker. ``clients`` has at least one."""

    def __init__(self, clients: Sequence[HttpClient], clock: Callable[[], float]) -> None:
        self._hosts = [_Host(client, clock) for client in clients]
        self._clock = clock

    def allows_attempt(self, request: Request, deadline: Deadline) -> bool:
        """Whether the circuit breaker of any host allows an attempt of the request now."""
        has_time = _has_time(_attempt(request, deadline))
        return any(host.circuit.allows_attempt(has_time=has_time) for host in self._hosts)

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """Send the request to one host after the other until one succeeds.

        A request that is not retryable is sent to another host only if no byte of it was sent. If all hosts fail,
        returns the last response or raises the last exception.
        """
        hosts = self._in_order(request, deadline)
        if not hosts:
            raise NotSent(self._hosts[-1].circuit.last_error)
        failed: list[tuple[_Host, int]] = []
        for host in hosts:
            is_last = host is hosts[-1]
            attempt, started_s = _attempt(request, deadline), self._clock()
            try:
                response = host.send_request(request, attempt)
            except NoResponse as error:
                if attempt.at_s - started_s >= limits.CIRCUIT_MIN_TIME_S:
                    host.back_off(error)
                if is_last or not (request.is_retryable or isinstance(error, NotSent)):
                    raise
                continue
            if response.status not in RETRYABLE_STATUSES:
                host.end_backoff()
                for other, status in failed:
                    other.back_off(f'it answered {status}')
                return response
            if is_last or not request.is_retryable:
                return response
            failed.append((host, response.status))
        raise AssertionError('the last host returns or raises')

    def _in_order(self, request: Request, deadline: Deadline) -> list[_Host]:
        if not any(host.has_failed for host in self._hosts):
            return self._hosts
        has_time = _has_time(_attempt(request, deadline))
        allowed = [host for host in self._hosts if host.circuit.allows_attempt(has_time=has_time)]
        # A request that cannot be retried, or has little time, does not try a host that failed while there is another.
        may_try = request.is_retryable and has_time
        return sorted(allowed, key=lambda host: host.is_backed_off() or (host.has_failed and not may_try))


def _attempt(request: Request, deadline: Deadline) -> Deadline:
    """The deadline of one attempt at a host, if it starts now."""
    return deadline.fraction(limits.NOVA_ATTEMPT_FRACTION) if request.is_retryable else deadline


def _has_time(attempt: Deadline) -> bool:
    """Whether a failure of the attempt shows a failure of the host."""
    return attempt.remaining_s() >= limits.CIRCUIT_MIN_TIME_S


class _Host:
    """A host and its health."""

    def __init__(self, client: HttpClient, clock: Callable[[], float]) -> None:
        self.circuit = CircuitBreaker(clock)
        self.has_failed = False
        """Whether the host failed after its last good response. False: the circuit is closed, no backoff is active."""
        self._client = client
        self._clock = clock
        self._backed_off_until_s = 0.0
        self._failure_log = Throttle(limits.LOG_INTERVAL_S, clock)

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """See :meth:`HttpClient.send_request`. Also records whether a connection was made."""
        started_s = self._clock()
        if self.has_failed:
            # A request that cannot be sent raises BadRequest here, and is no attempt.
            header_bytes(request, '')
            self.circuit.start_attempt()
            self._backed_off_until_s = started_s + limits.NOVA_HOST_BACKOFF_S
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
        """Whether the host stands last in the order now."""
        return self.has_failed and self._backed_off_until_s > self._clock()

    def back_off(self, reason: object) -> None:
        """Put the host last in the order for ``limits.NOVA_HOST_BACKOFF_S`` seconds, because it failed."""
        if self._failure_log.allow():
            LOG.warning('Nova at %s fails: %s', self._client.name, reason)
        instruments.NOVA_HOST_FAILURES.add(self._client.name)
        instruments.NOVA_HOST_SET_ASIDE.set(1, self._client.name)
        self._backed_off_until_s = self._clock() + limits.NOVA_HOST_BACKOFF_S
        self.has_failed = True

    def end_backoff(self) -> None:
        """Put the host back in its configured place, because it responded."""
        if self.has_failed:
            instruments.NOVA_HOST_SET_ASIDE.set(0, self._client.name)
        self.has_failed = False
