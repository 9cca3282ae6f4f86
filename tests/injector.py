# SPDX-License-Identifier: Apache-2.0
"""A man in the middle who misbehaves on command: one instance before each service that is to fail.

It passes HTTP/1.1 requests to the service and its answers back, both on kept connections, and writes each
request down. A plan says what goes wrong, at which requests, and how often or for how long::

    injector.plan(Status(503), at=target('/openstack'))            # once
    injector.plan(hang, at=nth(0), times=2)
    injector.plan(cut, at=target('/openstack'), for_s=5.0)         # from the first such request on

Each fault is a function of an ``Exchange``: a request that was read and what may be done about it.
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
"""How long a single refusal lasts. The kernel refuses, so refusals cannot be counted; this is longer than the
agent's first two pauses together can be, and so meets at least one of its tries."""


@dataclass(frozen=True)
class Seen:
    """A request that arrived: its number since the last ``forget``, and whether a fault met it."""

    number: int
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b''
    failed: bool = False


At = Callable[[Seen], bool]


def nth(number: int) -> At:
    """The request of that number, counted from 0; one that is sent again has another number."""
    return lambda seen: seen.number == number


def target(*targets: str) -> At:
    """The requests for one of ``targets``, which may end in a star."""
    return lambda seen: any(seen.target == t or (t.endswith('*') and seen.target.startswith(t[:-1])) for t in targets)


class Exchange:
    """One request of a client, and the ways to end it. ``again`` says whether the connection may serve another."""

    def __init__(self, injector: Injector, client: socket.socket, service: http.client.HTTPConnection, seen: Seen):
        self.injector = injector
        self.client = client
        self.seen = seen
        self.again = True
        self._service = service

    def ask(self) -> tuple[int, str, list[tuple[str, str]], bytes]:
        """The service's own answer: status, reason, headers, the whole body."""
        for fresh in (False, True):
            try:
                self._service.putrequest(self.seen.method, self.seen.target, skip_host=True, skip_accept_encoding=True)
                for name, value in self.seen.headers.items():
                    self._service.putheader(name, value)
                self._service.endheaders(self.seen.body or None)
                answer = self._service.getresponse()
                break
            except (http.client.RemoteDisconnected, ConnectionError):
                # It closed a connection that was kept for it.
                self._service.close()
                if fresh:
                    raise
        body = answer.read()
        for said, meant in self.injector.rewrite.items():
            body = body.replace(said, meant)
        dropped = ('transfer-encoding', 'content-length', 'connection', 'keep-alive')
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
        return answer.status, answer.reason, headers, body

    def say(self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        """Send an answer that claims to have ``length`` bytes."""
        lines = [f'HTTP/1.1 {status} {reason}', *(f'{n}: {v}' for n, v in headers), f'Content-Length: {length}']
        self.client.sendall(('\r\n'.join(lines) + '\r\n\r\n').encode('latin-1') + body)

    def break_off(self) -> None:
        """Nothing more on this connection."""
        self.again = False


Fault = Callable[[Exchange], None]


def passed(exchange: Exchange) -> None:
    """No fault."""
    status, reason, headers, body = exchange.ask()
    exchange.say(status, reason, headers, body if exchange.seen.method != 'HEAD' else b'', len(body))


@dataclass(frozen=True)
class Status:
    """Answer ``code`` without asking the service, with a body that nobody should ever take for metadata."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()

    def __call__(self, exchange: Exchange) -> None:
        body = b'<html>injected</html>'
        headers = [('Content-Type', 'text/html'), *self.headers]
        exchange.say(self.code, http.client.responses[self.code], headers, body, len(body))


def hang(exchange: Exchange) -> None:
    """Say nothing until the client goes away."""
    exchange.break_off()
    exchange.client.settimeout(HANG_S)
    with contextlib.suppress(OSError):
        exchange.client.recv(1)


def cut(exchange: Exchange) -> None:
    """Send the head and half of the body, then close; where there is no body, claim one."""
    exchange.break_off()
    status, reason, headers, body = exchange.ask()
    exchange.say(status, reason, headers, body[: len(body) // 2], max(2, len(body)))


@dataclass(frozen=True)
class Refused:
    """Close this connection unanswered and refuse new ones for ``for_s`` seconds: a service that is being restarted."""

    for_s: float = REFUSE_S

    def __call__(self, exchange: Exchange) -> None:
        exchange.break_off()
        exchange.injector.refuse(self.for_s)


@dataclass
class _Plan:
    fault: Fault
    at: At
    times: int
    for_s: float
    until: float = 0.0

    def takes(self, seen: Seen, now: float) -> bool:
        if not self.at(seen) or self.times == 0 or (self.until and now > self.until):
            return False
        if self.for_s and not self.until:
            self.until = now + self.for_s
        self.times -= 1
        return True


@dataclass
class Injector:
    """Listens on a port of loopback for the service at (``host``, ``port``).

    ``rewrite``: what is replaced in the bodies of answers, so that a service that tells where others are names their
    injectors instead.
    """

    host: str
    port: int
    rewrite: Mapping[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests: list[Seen] = []
        self._plans: list[_Plan] = []
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._closed = False
        self._listener = self._listen(0)
        self.listens_on: int = self._listener.getsockname()[1]
        self._refusing: threading.Timer | None = None
        self._begin(self._accept, self._listener)

    def plan(self, fault: Fault, *, at: At, times: int = 1, for_s: float = 0.0) -> None:
        """Let ``fault`` happen at the next ``times`` requests that fit ``at``, or for ``for_s`` s."""
        with self._lock:
            self._plans.append(_Plan(fault, at, -1 if for_s else times, for_s))

    def forget(self) -> None:
        """No plans and no requests; numbers begin at 0. What is refusing goes on until its time is over."""
        with self._lock:
            self._plans.clear()
            self.requests.clear()
        if self._refusing:
            self._refusing.join(10)

    def targets(self) -> list[str]:
        """Method and target of what reached the service, in order, without what failed here."""
        return [f'{seen.method} {seen.target}' for seen in self.requests if not seen.failed]

    def refuse(self, for_s: float) -> None:
        """Close the listening socket for ``for_s`` seconds, and every kept connection."""
        with self._lock:
            if self._refusing and self._refusing.is_alive():
                return
            _shut(self._listener)
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RD)
            self._refusing = threading.Timer(for_s, self._listen_again)
            self._refusing.daemon = True
            self._refusing.start()

    def mend(self) -> None:
        """Refuse no longer."""
        with self._lock:
            waiting, self._refusing = self._refusing, None
        if waiting and waiting.is_alive():
            waiting.cancel()
            self._listen_again()

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._closed = True
            if self._refusing:
                self._refusing.cancel()
            for sock in (self._listener, *self._clients):
                _shut(sock)

    def __enter__(self) -> Injector:
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
            self._listener = self._listen(self.listens_on)
            self._begin(self._accept, self._listener)

    def _begin(self, function: Callable[[socket.socket], None], sock: socket.socket) -> None:
        threading.Thread(target=function, args=(sock,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._lock:
                    self._clients.add(client)
                self._begin(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        service = http.client.HTTPConnection(self.host, self.port, timeout=HANG_S)
        reader = client.makefile('rb')
        with contextlib.suppress(OSError, http.client.HTTPException):
            while (read := _read(reader)) is not None:
                seen, fault = self._note(*read)
                exchange = Exchange(self, client, service, seen)
                fault(exchange)
                if not exchange.again:
                    break
        with self._lock:
            self._clients.discard(client)
        reader.close()
        _shut(client)
        service.close()

    def _note(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[Seen, Fault]:
        with self._lock:
            seen = Seen(len(self.requests), method, path, headers, body)
            now = time.monotonic()
            fault = next((plan.fault for plan in self._plans if plan.takes(seen, now)), passed)
            seen = replace(seen, failed=fault is not passed)
            self.requests.append(seen)
            return seen, fault


def _read(reader) -> tuple[str, str, dict[str, str], bytes] | None:
    """The next request; None when the client has gone."""
    line = reader.readline()
    if not line.endswith(b'\r\n'):
        return None
    method, path, _ = line.decode('latin-1').split(' ', 2)
    parsed = http.client.parse_headers(reader)
    headers = dict(parsed.items())
    return method, path, headers, reader.read(int(parsed.get('content-length', 0)))


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # A thread that waits in accept or recv does not notice close alone.
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
