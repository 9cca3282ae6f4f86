# SPDX-License-Identifier: Apache-2.0
"""Writes the responses of the application.

- The header and the first piece of the body are sent together.
- If the response has a header ``X-Metadata-Hop-Limit``, its value becomes the IP TTL of the client's socket. The header
  is not sent to an instance.

``parse_errors`` sends the responses to requests that cannot be parsed.
"""

from __future__ import annotations

import functools
import logging
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from gunicorn.util import http_date

from metadata_wsgi.http import header_names
from metadata_wsgi.server.request_parser import ParsedRequest

LOG = logging.getLogger(__name__)

_STATUS = re.compile(r'[1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?')
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r'[\t\x20-\x7e\x80-\xff]*')
# Headers that the writer reads or drops. Hop-by-hop headers of the application are dropped: the writer sets its own.
_SPECIAL_HEADERS = header_names.HOP_BY_HOP | {'content-length', 'date', header_names.HOP_LIMIT}
TTL_OPTIONS = {
    socket.AF_INET: ((socket.IPPROTO_IP, socket.IP_TTL),),
    # Both options, because a connection over IPv4 to a dual-stack socket also has this family.
    socket.AF_INET6: ((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS), (socket.IPPROTO_IP, socket.IP_TTL)),
}


class ClientConnectionError(Exception):
    """A response could not be sent: the client closed the connection, or did not receive in time.

    ``__cause__`` is the OSError of the socket. An OSError that the application raises is not of this class.
    """


class ResponseWriter:
    """Writes the response to ``request`` on ``connection``: PEP 3333's ``start_response`` and ``write``."""

    def __init__(self, request: ParsedRequest, connection: Any) -> None:
        self.headers_sent = False
        self._request = request
        self._connection = connection
        self._must_close = request.must_close
        self._status = ''
        self._lines: list[str] = []
        self._remaining: int | None = None
        self._is_chunked = self._omits_body = False
        self._hop_limit = ''
        self._pending = b''

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """See PEP 3333. Raises ValueError or TypeError for a malformed status or header, and sends nothing."""
        if exc_info:
            if self.headers_sent:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status:
            raise AssertionError('start_response was called twice')
        if not _STATUS.fullmatch(status):
            raise ValueError(f'malformed status: {status!r}')
        code = int(status[:3])
        method, version = self._request.fields['REQUEST_METHOD'], self._request.fields['SERVER_PROTOCOL']
        self._omits_body = method == 'HEAD' or code < 200 or code in (204, 304)
        self._status = f'{version} {status}\r\n'
        self._remaining, self._hop_limit = None, ''
        self._lines = self._header_lines(headers, has_length=code >= 200 and code != 204)
        self._is_chunked = self._remaining is None and not self._omits_body and version == 'HTTP/1.1'
        # After 400 and 413 the start of the next request is uncertain. A body without a length ends with the
        # connection.
        if code in (400, 413) or (self._remaining is None and not self._is_chunked and not self._omits_body):
            self._must_close = True
        return self.write

    def _header_lines(self, headers: list[tuple[str, str]], *, has_length: bool) -> list[str]:
        lines, has_date = [], False
        for name, value in headers:
            if not (isinstance(name, str) and isinstance(value, str)):
                raise TypeError(f'a header must be two strings: {name!r}')
            lowered = _lower_name(name)
            if not lowered or not ((value.isascii() and value.isprintable()) or _HEADER_VALUE.fullmatch(value)):
                raise ValueError(f'malformed header: {name!r}')  # without its value, which may be a secret
            if lowered in _SPECIAL_HEADERS:
                if lowered in header_names.HOP_BY_HOP or (lowered == 'content-length' and not has_length):
                    continue
                if lowered == 'content-length':
                    self._remaining = int(value)
                elif lowered == 'date':
                    has_date = True
                elif self._connection.family in TTL_OPTIONS:
                    self._hop_limit = value
                    continue
            lines.append(f'{name}: {value}\r\n')
        if not has_date:
            lines.append(_date(int(time.time())))
        return lines

    def force_close(self) -> None:
        """Close the connection after this response."""
        self._must_close = True

    def should_close(self) -> bool:
        """Whether the connection is closed after this response."""
        return self._must_close or self._request.has_unread_body

    def write(self, data: bytes) -> None:
        """See PEP 3333."""
        if not isinstance(data, bytes):
            raise TypeError(f'the body must be bytes, not {type(data).__name__}')
        if not data:
            return  # the header is not sent yet, so the application may still replace the status
        self._send_headers()
        if self._omits_body:
            return
        if self._remaining is not None:
            data = data[: self._remaining]
            self._remaining -= len(data)
            if not data:
                return
        if self._is_chunked:
            data = b'%X\r\n%b\r\n' % (len(data), data)
        self._send(data)

    def close(self) -> None:
        """Send the remaining bytes. Call it after the last piece of the body."""
        self._send_headers()
        if self._remaining and not self._omits_body:
            # The body is shorter than its Content-Length. The closed connection shows this to the client.
            self.force_close()
        if self._is_chunked:
            self._pending += b'0\r\n\r\n'
        if self._pending:
            self._send(b'')

    def _send(self, data: bytes) -> None:
        pending, self._pending = self._pending, b''
        try:
            self._connection.sendall(pending + data)
        except OSError as error:
            raise ClientConnectionError(str(error)) from error

    def _send_headers(self) -> None:
        if self.headers_sent:
            return
        if not self._status:
            raise AssertionError('start_response was not called')
        self.headers_sent = True
        if self._hop_limit:
            self._set_ttl()
        persistence = 'Connection: close\r\n' if self.should_close() else 'Connection: keep-alive\r\n'
        chunked = 'Transfer-Encoding: chunked\r\n' if self._is_chunked else ''
        head = f'{self._status}{"".join(self._lines)}{persistence}{chunked}\r\n'
        self._pending = head.encode('latin-1')

    def _set_ttl(self) -> None:
        """Set the TTL of the client's socket to the response's hop limit, for the rest of the connection.

        Not called for a unix socket: the header is sent to the namespace proxy, which sets the TTL.
        """
        ttl = int(self._hop_limit) if self._hop_limit.isdecimal() else 0
        if 0 < ttl < 256:
            for level, option in TTL_OPTIONS[self._connection.family]:
                self._connection.setsockopt(level, option, ttl)


@functools.lru_cache(maxsize=256)
def _lower_name(name: str) -> str:
    """The name of a header in lower case; '' if it is malformed."""
    return name.lower() if _HEADER_NAME.fullmatch(name) else ''


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return f'Date: {http_date(second)}\r\n'
