# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 proxy that injects faults. A test has one in front of each service that is to fail.

The proxy forwards requests to the service and responses to the client, both over keep-alive connections. It records
each request. A plan defines the fault, the requests with the fault, and how often or how long it is injected::

    proxy.plan(Status(503), at=target('/openstack'))            # once
    proxy.plan(hang, at=nth(0), times=2)
    proxy.plan(cut, at=target('/openstack'), for_s=5.0)         # for 5 s from the first such request on

A fault is a function of an ``Exchange``: of one request and the connection on which the request arrived.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

HANG_S = 30.0
REFUSE_S = 0.15
"""Duration of one refusal. The kernel refuses, so refusals cannot be counted. The duration is longer than the sum
of the agent's first two retry delays, so at least one attempt is refused."""


@dataclass(frozen=True)
class RecordedRequest:
    """A received request; ``number`` counts from the last ``reset``."""

    number: int
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b''
    fault_injected: bool = False


RequestFilter = Callable[[RecordedRequest], bool]


def nth(number: int) -> RequestFilter:
    """Matches the request with this number, counted from 0; a retried request has a new number."""
    return lambda request: request.number == number


def target(*targets: str) -> RequestFilter:
    """Matches requests for one of ``targets``, each of which may end in a star."""
    return lambda request: any(
        request.target == t or (t.endswith('*') and request.target.startswith(t[:-1])) for t in targets
    )


class Exchange:
    """One request and the ways to respond. ``keep_alive``: whether the connection serves another request."""

    def __init__(
        self,
        proxy: FaultInjectingProxy,
        client: socket.socket,
        service: http.client.HTTPConnection,
        request: RecordedRequest,
    ):
        self.proxy = proxy
        self.client = client
        self.request = request
        self.keep_alive = True
        self._service = service

    def forward(self) -> tuple[int, str, list[tuple[str, str]], bytes]:
        """Send the request to the service. Returns (status, reason, headers, body) of the response."""
        for fresh in (False, True):
            try:
                self._service.putrequest(
                    self.request.method, self.request.target, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.request.headers.items():
                    self._service.putheader(name, value)
                self._service.endheaders(self.request.body or None)
                response = self._service.getresponse()
                break
            except (http.client.RemoteDisconnected, ConnectionError):
                # The service closed the idle keep-alive connection.
                self._service.close()
                if fresh:
                    raise
        body = response.read()
        for old, new in self.proxy.rewrite.items():
            body = body.replace(old, new)
        dropped = ('transfer-encoding', 'content-length', 'connection', 'keep-alive')
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in dropped]
        return response.status, response.reason, headers, body

    def respond(self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        """Send a response whose Content-Length is ``length``, whatever the length of ``body``."""
        lines = [f'HTTP/1.1 {status} {reason}', *(f'{n}: {v}' for n, v in headers), f'Content-Length: {length}']
        self.client.sendall(('\r\n'.join(lines) + '\r\n\r\n').encode('latin-1') + body)

    def close_after_this(self) -> None:
        """Close the connection after this exchange."""
        self.keep_alive = False


Fault = Callable[[Exchange], None]


def pass_through(exchange: Exchange) -> None:
    """No fault: forward the request and return the response."""
    status, reason, headers, body = exchange.forward()
    exchange.respond(status, reason, headers, body if exchange.request.method != 'HEAD' else b'', len(body))


@dataclass(frozen=True)
class Status:
    """Respond with ``code`` and a body that is no metadata; the service gets no request."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()

    def __call__(self, exchange: Exchange) -> None:
        body = b'<html>injected</html>'
        headers = [('Content-Type', 'text/html'), *self.headers]
        exchange.respond(self.code, http.client.responses[self.code], headers, body, len(body))


def hang(exchange: Exchange) -> None:
    """Send no response until the client disconnects."""
    exchange.close_after_this()
    exchange.client.settimeout(HANG_S)
    with contextlib.suppress(OSError):
        exchange.client.recv(1)


def cut(exchange: Exchange) -> None:
    """Send the header and half of the body, then close. If the body is empty, Content-Length is wrong."""
    exchange.close_after_this()
    status, reason, headers, body = exchange.forward()
    exchange.respond(status, reason, headers, body[: len(body) // 2], max(2, len(body)))


@dataclass(frozen=True)
class Refused:
    """Close this connection without a response and refuse new ones for ``for_s`` seconds, as during a restart."""

    for_s: float = REFUSE_S

    def __call__(self, exchange: Exchange) -> None:
        exchange.close_after_this()
        exchange.proxy.refuse(self.for_s)


@dataclass
class _Plan:
    fault: Fault
    at: RequestFilter
    times: int
    for_s: float
    until: float = 0.0

    def applies_to(self, request: RecordedRequest, now: float) -> bool:
        if not self.at(request) or self.times == 0 or (self.until and now > self.until):
            return False
        if self.for_s and not self.until:
            self.until = now + self.for_s
        self.times -= 1
        return True


@dataclass
class FaultInjectingProxy:
    """Listens on a port of loopback for the service at (``host``, ``port``).

    ``rewrite``: replacements in response bodies, so that a catalogue of services points to their proxies.
    """

    host: str
    port: int
    rewrite: Mapping[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self._plans: list[_Plan] = []
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._closed = False
        self._listener = self._listen(0)
        self.listen_port: int = self._listener.getsockname()[1]
        self._refusal_timer: threading.Timer | None = None
        self._start_thread(self._accept, self._listener)

    def plan(self, fault: Fault, *, at: RequestFilter, times: int = 1, for_s: float = 0.0) -> None:
        """Inject ``fault`` into the next ``times`` requests that match ``at``, or for ``for_s`` seconds."""
        with self._lock:
            self._plans.append(_Plan(fault, at, -1 if for_s else times, for_s))

    def reset(self) -> None:
        """Delete all plans and recorded requests, and wait for the end of a ``refuse`` in progress."""
        with self._lock:
            self._plans.clear()
            self.requests.clear()
        if self._refusal_timer:
            self._refusal_timer.join(60)

    def targets(self) -> list[str]:
        """Method and target of the requests that were forwarded, in order."""
        return [f'{request.method} {request.target}' for request in self.requests if not request.fault_injected]

    def refuse(self, for_s: float) -> None:
        """Close every open connection, and the listening socket for ``for_s`` seconds."""
        with self._lock:
            if self._refusal_timer and self._refusal_timer.is_alive():
                return
            _shut_down(self._listener)
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RD)
            self._refusal_timer = threading.Timer(for_s, self._listen_again)
            self._refusal_timer.daemon = True
            self._refusal_timer.start()

    def stop_refusing(self) -> None:
        """End a ``refuse`` in progress early."""
        with self._lock:
            timer, self._refusal_timer = self._refusal_timer, None
        if timer and timer.is_alive():
            timer.cancel()
            self._listen_again()

    def close(self) -> None:
        """Close all sockets."""
        with self._lock:
            self._closed = True
            if self._refusal_timer:
                self._refusal_timer.cancel()
            for sock in (self._listener, *self._clients):
                _shut_down(sock)

    def __enter__(self) -> FaultInjectingProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(('127.0.0.1', port))
        listener.listen(64)
        return listener

    def _listen_again(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._listener = self._listen(self.listen_port)
            self._start_thread(self._accept, self._listener)

    def _start_thread(self, function: Callable[[socket.socket], None], sock: socket.socket) -> None:
        threading.Thread(target=function, args=(sock,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._lock:
                    self._clients.add(client)
                self._start_thread(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        service = http.client.HTTPConnection(self.host, self.port, timeout=HANG_S)
        reader = client.makefile('rb')
        with contextlib.suppress(OSError, http.client.HTTPException):
            while (read := _read(reader)) is not None:
                request, fault = self._record(*read)
                exchange = Exchange(self, client, service, request)
                fault(exchange)
                if not exchange.keep_alive:
                    break
        with self._lock:
            self._clients.discard(client)
        reader.close()
        _shut_down(client)
        service.close()

    def _record(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[RecordedRequest, Fault]:
        with self._lock:
            request = RecordedRequest(len(self.requests), method, path, headers, body)
            now = time.monotonic()
            fault = next((plan.fault for plan in self._plans if plan.applies_to(request, now)), pass_through)
            request = replace(request, fault_injected=fault is not pass_through)
            self.requests.append(request)
            return request, fault


def _read(reader) -> tuple[str, str, dict[str, str], bytes] | None:
    """The next request; None if the client disconnected."""
    line = reader.readline()
    if not line.endswith(b'\r\n'):
        return None
    method, path, _ = line.decode('latin-1').split(' ', 2)
    parsed = http.client.parse_headers(reader)
    headers = dict(parsed.items())
    return method, path, headers, reader.read(int(parsed.get('content-length', 0)))


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # close() alone does not wake a thread blocked in accept or recv.
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
