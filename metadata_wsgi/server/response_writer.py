# SPDX-License-Identifier: Apache-2.0
"""How an answer, or a refusal, leaves the worker.

Head and first piece of the body are one segment; what a filter asked of the packets themselves (the hop limit) is done
here, where the guest's own socket is; a refusal is a constant sentence, and the connection ends with it.
"""

from __future__ import annotations

import functools
import logging
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from gunicorn.http import errors
from gunicorn.util import http_date

from metadata_wsgi import limits
from metadata_wsgi.http import header_names
from metadata_wsgi.server.request_parser import ParsedRequest

LOG = logging.getLogger(__name__)

PARSE_ERROR_STATUS = {
    errors.LimitRequestLine: (414, 'URI Too Long'),
    errors.LimitRequestHeaders: (431, 'Request Header Fields Too Large'),
}
_STATUS = re.compile(r'[1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?')
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*\r\n")
# What belongs to the connection is said here and nowhere else.
_OURS = header_names.HOP_BY_HOP
TTL_OPTIONS = {
    socket.AF_INET: ((socket.IPPROTO_IP, socket.IP_TTL),),
    # Both, because the connection of an IPv4 guest to a socket of both families is one of this kind.
    socket.AF_INET6: ((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS), (socket.IPPROTO_IP, socket.IP_TTL)),
}


class ResponseWriter:
    """An answer on the wire, to the request with that head. ``cfg``: gunicorn's settings, which ``strictness`` asks."""

    def __init__(self, head: ParsedRequest, connection: Any, cfg: Any) -> None:
        self.cfg = cfg
        self.headers_sent = False
        self._head = head
        self._connection = connection
        self._must_close = head.must_close
        self._status = ''
        self._lines: list[str] = []
        self._left: int | None = None
        self._is_chunked = self._omits_body = False
        self._hop_limit = ''
        self._pending = b''

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """PEP 3333. ValueError or TypeError for what must not go on a wire."""
        if exc_info:
            if self.headers_sent:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status:
            raise AssertionError('start_response was called twice')
        if not _STATUS.fullmatch(status):
            raise ValueError(f'no status: {status!r}')
        code = int(status[:3])
        method, version = self._head.fields['REQUEST_METHOD'], self._head.fields['SERVER_PROTOCOL']
        self._omits_body = method == 'HEAD' or code < 200 or code in (204, 304)
        self._status = f'{version} {status}\r\n'
        self._left, self._hop_limit = None, ''
        self._lines = self._checked(headers, has_length=code >= 200 and code != 204)
        self._is_chunked = self._left is None and not self._omits_body and version == 'HTTP/1.1'
        # After a refusal too: what is behind a request that is none is not looked at. And without a length the end
        # of the connection is the end of the answer.
        if code in (400, 413) or (self._left is None and not self._is_chunked and not self._omits_body):
            self._must_close = True
        return self.write

    def _checked(self, headers: list[tuple[str, str]], *, has_length: bool) -> list[str]:
        lines, has_date = [], False
        for name, value in headers:
            if not (isinstance(name, str) and isinstance(value, str)):
                raise TypeError(f'a header that is no text: {name!r}')
            line = f'{name}: {value}\r\n'
            if ':' in name or not _FIELD.fullmatch(line):
                raise ValueError(f'no header: {name!r}')  # its value may be a secret
            lowered = name.lower()
            if lowered in _OURS:
                continue
            if lowered == 'content-length':
                if not has_length:
                    continue
                self._left = int(value)
            elif lowered == 'date':
                has_date = True
            elif lowered == header_names.HOP_LIMIT and self._connection.family in TTL_OPTIONS:
                self._hop_limit = value
                continue
            lines.append(line)
        if not has_date:
            lines.append(_date(int(time.time())))
        return lines

    def force_close(self) -> None:
        """Nothing may follow this answer."""
        self._must_close = True

    def should_close(self) -> bool:
        """Whether nothing may follow this answer."""
        return self._must_close or self._head.unread

    def write(self, data: bytes) -> None:
        """PEP 3333."""
        if not isinstance(data, bytes):
            raise TypeError(f'a piece of the body that is no bytes: {type(data).__name__}')
        if not data:
            return  # nothing is sent yet, so the status may still be replaced
        self._send_headers()
        if self._omits_body:
            return
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            if not data:
                return
        if self._is_chunked:
            data = b'%X\r\n%b\r\n' % (len(data), data)
        pending, self._pending = self._pending, b''
        self._connection.sendall(pending + data)

    def close(self) -> None:
        """The answer is complete."""
        self._send_headers()
        if self._left and not self._omits_body:
            # The guest must notice: it was promised more.
            self.force_close()
        if self._is_chunked:
            self._pending += b'0\r\n\r\n'
        if self._pending:
            self._connection.sendall(self._pending)
            self._pending = b''

    def _send_headers(self) -> None:
        if self.headers_sent:
            return
        if not self._status:
            raise AssertionError('start_response was not called')
        self.headers_sent = True
        if self._hop_limit:
            self._keep_near()
        persistence = 'Connection: close\r\n' if self.should_close() else 'Connection: keep-alive\r\n'
        chunked = 'Transfer-Encoding: chunked\r\n' if self._is_chunked else ''
        head = f'{self._status}{"".join(self._lines)}{persistence}{chunked}\r\n'
        self._pending = head.encode('latin-1')

    def _keep_near(self) -> None:
        """Act on the answer's hop limit, where the guest's own socket is; a unix socket passes it on.

        It stays on the connection: whoever is too far away for this answer has lost the connection with it.
        """
        hops = int(self._hop_limit) if self._hop_limit.isdecimal() else 0
        if 0 < hops < 256:
            for level, option in TTL_OPTIONS[self._connection.family]:
                self._connection.setsockopt(level, option, hops)


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return f'Date: {http_date(second)}\r\n'


def refuse(client: Any, error: Exception) -> None:
    """Answer a request that HTTP calls malformed or ambiguous, in words of ours."""
    LOG.info('Refused a malformed request: %s', type(error).__name__)
    status, reason = PARSE_ERROR_STATUS.get(type(error), (400, 'Bad Request'))
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
    until = time.monotonic() + limits.DRAIN_S
    try:
        client.shutdown(1)
        for _ in range(limits.DRAIN_RECVS):
            client.settimeout(max(0.001, until - time.monotonic()))
            if not client.recv(65536):
                break
    except OSError as gone:
        LOG.debug('Not read to its end: %s', gone)
