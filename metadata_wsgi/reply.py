# SPDX-License-Identifier: Apache-2.0
"""How an answer, or a refusal, leaves the worker.

Head and first piece of the body are one segment; what a filter asked of the packets themselves (the hop limit) is done
here, where the guest's own socket is; a refusal is a constant sentence, and the connection ends with it.
"""

from __future__ import annotations

import functools
import logging
import socket
import time
from typing import Any

from gunicorn.http import errors
from gunicorn.http.wsgi import Response
from gunicorn.util import http_date

from metadata_wsgi import wire

LOG = logging.getLogger(__name__)

DRAIN_S = 1.0
DRAIN_PIECES = 256
REFUSALS = {
    errors.LimitRequestLine: (414, 'URI Too Long'),
    errors.LimitRequestHeaders: (431, 'Request Header Fields Too Large'),
}
HOPS = {
    socket.AF_INET: ((socket.IPPROTO_IP, socket.IP_TTL),),
    # Both, because the connection of an IPv4 guest to a socket of both families is one of this kind.
    socket.AF_INET6: ((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS), (socket.IPPROTO_IP, socket.IP_TTL)),
}


class Reply(Response):
    """An answer on the wire."""

    headers: list[tuple[str, str]]

    def __init__(self, request: Any, client: Any, cfg: Any) -> None:
        super().__init__(request, client, cfg)
        self.headers_sent: bool = False
        self._pending = b''

    def should_close(self) -> bool:
        """Also after a refusal: what is behind a request that is none is not looked at."""
        return bool(super().should_close()) or self.status_code in (400, 413)

    def default_headers(self) -> list[str]:
        """Status line, and what the application did not say itself."""
        said = {name.lower() for name, _ in self.headers}
        lines = [f'HTTP/{self.req.version[0]}.{self.req.version[1]} {self.status}\r\n']
        if 'date' not in said:
            lines.append(f'Date: {_date(int(time.time()))}\r\n')
        lines.append('Connection: close\r\n' if self.should_close() else 'Connection: keep-alive\r\n')
        if self.chunked:
            lines.append('Transfer-Encoding: chunked\r\n')
        return lines

    def send_headers(self) -> None:
        """Called before the first piece of the body, or where there is none."""
        if self.headers_sent:
            return
        self.headers_sent = True
        lines = self.default_headers()
        self._keep_near()
        lines += [f'{name}: {value}\r\n' for name, value in self.headers]
        self._pending = (''.join(lines) + '\r\n').encode('latin-1')

    def _keep_near(self) -> None:
        """Act on the answer's hop limit, if it has one, where the guest's own socket is; a unix socket passes it on.

        It stays on the connection: whoever is too far away for this answer has lost the connection with it.
        """
        limits = [value for name, value in self.headers if name.lower() == wire.HOP_LIMIT]
        if not limits or self.sock.family not in HOPS:
            return
        self.headers = [(name, value) for name, value in self.headers if name.lower() != wire.HOP_LIMIT]
        hops = int(limits[0]) if limits[0].isdecimal() else 0
        if 0 < hops < 256:
            for level, option in HOPS[self.sock.family]:
                self.sock.setsockopt(level, option, hops)

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            data = b'%X\r\n%b\r\n' % (len(data), data)
        pending, self._pending = self._pending, b''
        _send(self.sock, pending + data)

    def close(self) -> None:
        """The answer is complete."""
        self.send_headers()
        if self.response_length is not None and self.sent != self.response_length and not self._omits_body:
            # The guest must notice: it was promised more.
            self.force_close()
        if self.chunked:
            self._pending += b'0\r\n\r\n'
        if self._pending:
            _send(self.sock, self._pending)
            self._pending = b''


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return http_date(second)


def _send(client: Any, data: bytes) -> None:
    """As sendall, which asks the kernel for the size of its buffer first; nearly every answer fits into it."""
    sent = client.send(data)
    if sent < len(data):
        client.sendall(data[sent:])


def refuse(client: Any, error: Exception) -> None:
    """Answer a request that HTTP calls malformed or ambiguous, in words of ours."""
    LOG.info('Refused a malformed request: %s', type(error).__name__)
    status, reason = REFUSALS.get(type(error), (400, 'Bad Request'))
    body = f'{reason}.\n'.encode()
    head = (
        f'HTTP/1.1 {status} {reason}\r\nConnection: close\r\n'
        f'Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n'
    )
    try:
        client.sendall(head.encode() + body)
    except OSError as gone:
        LOG.debug('Nobody heard the refusal: %s', gone)
        return
    drain(client)


def drain(client: Any) -> None:
    """Read on for a moment: while something comes, the kernel would send a reset that overtakes the answer."""
    until = time.monotonic() + DRAIN_S
    try:
        client.shutdown(1)
        for _ in range(DRAIN_PIECES):
            client.settimeout(max(0.001, until - time.monotonic()))
            if not client.recv(65536):
                break
    except OSError as gone:
        LOG.debug('Not read to its end: %s', gone)
