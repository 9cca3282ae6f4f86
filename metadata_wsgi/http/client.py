# SPDX-License-Identifier: Apache-2.0
"""HTTP client with a connection pool: namespace proxy to agent (unix socket), agent to Nova (TCP or TLS).

No library is used, for two reasons. The request target must be sent unchanged (also ``%2f``, ``..`` and non-ASCII), and
the libraries rewrite it. And urllib3 takes 335 microseconds of CPU for a request, this module 40. The header of a
response is parsed by picohttpparser (gunicorn_h1c), as in the server. This module adds the framing of RFC 9112. An
ambiguous response is an error.

A response up to ``limits.MAX_BUFFERED_BYTES`` is received completely before the client gets its first byte. So the
request can be retried if the connection breaks. A larger response is streamed, so memory is bounded. If the connection
then breaks, the client's connection is closed too, and the client detects that the body is incomplete.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, MaybeSent, NotSent
from metadata_wsgi.http.head_parser import IncompleteError, ParseError, parse_response
from metadata_wsgi.http.message import Headers, Request, Response, end_to_end
from metadata_wsgi.http.raw_socket import from_gevent_socket
from metadata_wsgi.http.tls_socket import TlsSocket
from metadata_wsgi.net import resolver

_CHUNK_SIZE = re.compile(rb'[0-9A-Fa-f]{1,15}\Z')


class HttpClient(Protocol):
    """Sends requests to one service. :class:`PooledHttpClient` is the implementation; tests use a fake."""

    name: str
    """The name of the service in log lines, for example ``http://nova:8775``."""

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """Send ``request`` once and return the response.

        Raises NotSent or MaybeSent if there is no response before ``deadline``.
        """


class PooledHttpClient:
    """HttpClient of one host or unix socket, with a pool of keep-alive connections. For all threads of a worker.

    ``connect(timeout_s)`` opens a connection or raises OSError. ``host`` is the value of the Host header. ``max_idle``
    is the size of the pool.
    """

    def __init__(
        self,
        connect: Callable[[float], Any],
        *,
        name: str,
        host: str,
        max_idle: int = limits.MAX_IDLE_CONNECTIONS,
    ) -> None:
        self.name = name
        self._connect = connect
        self._host = host
        self._idle: deque[_Connection] = deque(maxlen=max_idle)

    def __repr__(self) -> str:
        return f'<HTTP client of {self.name}, {len(self._idle)} idle connections>'

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """See :meth:`HttpClient.send_request`. Raises BadRequest for a header or target that cannot be sent.

        A request that is not retryable always gets a new connection. The server may close an idle connection at the
        moment when a request is sent on it; then it is unknown whether the server received the request.
        """
        header = _header_bytes(request, self._host)
        while request.is_retryable and self._idle:
            try:
                idle = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if not idle.is_reusable():
                idle.close()
                continue
            try:
                return self._send_on(idle, header, request, deadline)
            except _StaleConnection:
                continue
        remaining_s = deadline.remaining_s()
        if remaining_s <= 0:
            raise NotSent(f'{self.name}: no time was left to connect')
        try:
            opened = _Connection(self._connect(min(limits.CONNECT_TIMEOUT_S, remaining_s)))
        except OSError as error:
            raise NotSent(f'{self.name}: {str(error) or type(error).__name__}') from error
        return self._send_on(opened, header, request, deadline)

    def _send_on(self, connection: _Connection, header: bytes, request: Request, deadline: Deadline) -> Response:
        connection.deadline = deadline
        try:
            connection.send(header + request.body)
            status, reason, headers, is_last = connection.read_header()
            pieces = connection.read_body(request.method, status, headers)
            buffered: list[bytes] = []
            size = 0
            for piece in pieces:
                buffered.append(piece)
                size += len(piece)
                if size >= limits.MAX_BUFFERED_BYTES:
                    body = _StreamedBody(buffered, pieces, connection)
                    return Response(status, reason, end_to_end(headers), body)
        except (OSError, ValueError) as error:
            connection.close()
            if connection.reused and not connection.received_any and not isinstance(error, TimeoutError):
                raise _StaleConnection from error
            raise MaybeSent(f'{self.name}: {str(error) or type(error).__name__}') from error
        self._release(connection, is_last)
        content = b''.join(buffered)
        passed_on = end_to_end(headers)
        if (
            request.method != 'HEAD'
            and status not in (204, 304)
            and not any(name == 'content-length' for name, _ in passed_on)
        ):
            passed_on.append(('content-length', str(len(content))))
        return Response(status, reason, passed_on, [content] if content else [])

    def _release(self, connection: _Connection, is_last: bool) -> None:
        """Put the connection into the pool, or close it."""
        pool_is_full = len(self._idle) == self._idle.maxlen
        if is_last or not connection.reusable or connection.has_surplus_data or pool_is_full:
            connection.close()
            return
        connection.reused, connection.received_any = True, False
        self._idle.append(connection)


class _StaleConnection(Exception):
    """The server closed an idle connection and sent no byte of the response."""


class _Connection:
    """A connection and the bytes that were received and not parsed yet."""

    def __init__(self, sock: Any) -> None:
        self._sock: Any = from_gevent_socket(sock)
        self._data = b''
        self.reused = False
        self.received_any = False
        self.reusable = True
        self.deadline: Deadline | None = None

    def __del__(self) -> None:
        # Needed for a streamed response that nobody reads: a retry replaced it, or the client closed its connection.
        self._sock.close()

    @property
    def has_surplus_data(self) -> bool:
        """Whether bytes were received after the end of the response. They belong to no request."""
        return bool(self._data)

    def is_reusable(self) -> bool:
        """Whether an idle connection is open and no byte was received on it.

        Such a byte would be taken for the start of the next response.
        """
        self._sock.settimeout(0)
        try:
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def send(self, data: bytes) -> None:
        while data:
            self._sock.settimeout(self._timeout_s())
            data = data[self._sock.send(data) :]

    def close(self) -> None:
        self.reusable = False
        self._sock.close()

    def read_header(self) -> tuple[int, str, Headers, bool]:
        """Status, reason, headers (names in lower case), and whether the server closes the connection afterwards."""
        self._fill()
        while True:
            try:
                parsed = parse_response(self._data)
            except IncompleteError:
                if len(self._data) > limits.MAX_RESPONSE_HEADER_BYTES:
                    raise ValueError('the header of the response is too long') from None
                self._fill()
                continue
            except ParseError as error:
                raise ValueError('the response is not HTTP') from error
            self._data = self._data[parsed['consumed'] :]
            if parsed['status'] >= 200:
                break
            if not self._data:
                self._fill()
        headers = [(_lower_name(name), value.decode('latin-1')) for name, value in parsed['headers']]
        if not all(name for name, _ in headers):
            raise ValueError('a header of the response is folded')
        options = [
            token.strip().lower() for name, value in headers if name == 'connection' for token in value.split(',')
        ]
        if parsed['minor_version'] == 0 and any(name == 'transfer-encoding' for name, _ in headers):
            raise ValueError('the response is HTTP/1.0 and has a Transfer-Encoding')
        is_last = 'close' in options or (parsed['minor_version'] == 0 and 'keep-alive' not in options)
        return parsed['status'], parsed['message'].decode('latin-1'), _with_one_length(headers), is_last

    def read_body(self, method: str, status: int, headers: Headers) -> Iterator[bytes]:
        """The body, piece by piece as it arrives. Raises ValueError if its length is ambiguous (RFC 9112, 6.3)."""
        if method == 'HEAD' or status in (204, 304):
            return iter(())
        codings = [value.strip().lower() for name, value in headers if name == 'transfer-encoding']
        lengths = [value for name, value in headers if name == 'content-length']
        if codings:
            if lengths:
                raise ValueError('the response has both Transfer-Encoding and Content-Length')
            if codings != ['chunked']:
                raise ValueError(f'the transfer coding of the response is not chunked: {", ".join(codings)[:80]}')
            return self._chunks()
        if not lengths:
            self.reusable = False
            return self._until_closed()
        return self._exactly(int(lengths[0]))

    def _exactly(self, remaining: int) -> Iterator[bytes]:
        while remaining:
            if not self._data:
                self._fill()
            piece, self._data = self._data[:remaining], self._data[remaining:]
            remaining -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := self._chunk_size():
            yield from self._exactly(size)
            if self._line():
                raise ValueError('a chunk of the response is longer than its size')
        while self._line():  # trailers are hop-by-hop
            pass

    def _chunk_size(self) -> int:
        digits = self._line().partition(b';')[0].rstrip(b' \t')
        if not _CHUNK_SIZE.match(digits):  # int() accepts signs and underscores too
            raise ValueError('a chunk of the response has no size')
        return int(digits, 16)

    def _until_closed(self) -> Iterator[bytes]:
        while True:
            if self._data:
                yield self._data
                self._data = b''
            self._sock.settimeout(self._timeout_s())
            self._data = self._sock.recv(limits.CHUNK_BYTES)
            if not self._data:
                return

    def _line(self) -> bytes:
        while b'\r\n' not in self._data:
            if len(self._data) > limits.MAX_RESPONSE_HEADER_BYTES:
                raise ValueError('a line of the response is too long')
            self._fill()
        line, _, self._data = self._data.partition(b'\r\n')
        return line

    def _fill(self) -> None:
        """Receive at least one more byte."""
        self._sock.settimeout(self._timeout_s())
        piece = self._sock.recv(limits.CHUNK_BYTES)
        if not piece:
            raise ConnectionResetError('the connection was closed before the response was complete')
        self.received_any = True
        self._data += piece

    def _timeout_s(self) -> float:
        """Timeout of the next recv or send: the time to the deadline, or a constant in a streamed body."""
        remaining_s = limits.READ_WRITE_TIMEOUT_S if self.deadline is None else self.deadline.remaining_s()
        if remaining_s <= 0:
            raise TimeoutError('the response was not complete in time')
        return remaining_s


class _StreamedBody:
    """The body of a large response: the part that was already received, then the rest as it arrives."""

    def __init__(self, buffered: list[bytes], pieces: Iterator[bytes], connection: _Connection) -> None:
        self._buffered = buffered
        self._pieces = pieces
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        self._connection.deadline = None
        yield from self._buffered
        yield from self._pieces

    def close(self) -> None:
        """Called by the server (PEP 3333), even if the client has closed its connection."""
        self._connection.close()


def _with_one_length(headers: Headers) -> Headers:
    """``headers`` with at most one Content-Length. Repeated equal values become one header (RFC 9112, 6.3).

    Raises ValueError for different values, or a value that is not a number.
    """
    values = [value for name, value in headers if name == 'content-length']
    if not values or (len(values) == 1 and values[0].isascii() and values[0].isdigit()):
        return headers
    lengths = {part.strip() for value in values for part in value.split(',')}
    length = lengths.pop()
    if lengths:
        raise ValueError('the response has several different lengths')
    if not (length.isascii() and length.isdigit()):
        raise ValueError('the Content-Length of the response is not a number')
    return [*(header for header in headers if header[0] != 'content-length'), ('content-length', length)]


@functools.lru_cache(maxsize=256)
def _lower_name(name: bytes) -> str:
    return name.decode('latin-1').lower()


def unix_client(path: str) -> PooledHttpClient:
    """A client of the unix socket at ``path``."""
    return PooledHttpClient(functools.partial(_connect_unix, path), name=f'unix:{path}', host='localhost')


def tcp_client(
    host: str, port: int, *, tls: ssl.SSLContext | None = None, connector: resolver.TcpConnector = resolver.SHARED
) -> PooledHttpClient:
    """A client of ``host`` (name or IP address, IPv6 without brackets) at ``port``, over TLS if a context is given."""
    authority = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'

    def finish(sock: socket.socket, timeout_s: float) -> Any:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if tls is None else TlsSocket(sock, tls, host, timeout_s)

    def connect(timeout_s: float) -> Any:
        return connector.connect(host, port, timeout_s, finish)

    return PooledHttpClient(connect, name=f'{"https" if tls else "http"}://{authority}', host=authority)


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    """A connection to the unix socket at ``path``.

    While the backlog of the listening socket is full, connect() fails with EAGAIN, and no event signals the end of this
    state. gevent's connect() would spin, because an unconnected unix socket is always writable. So this function waits
    between two attempts.
    """
    until_s = time.monotonic() + timeout_s
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while code := sock.connect_ex(path):
            if code != errno.EAGAIN:
                raise OSError(code, os.strerror(code))
            if time.monotonic() + limits.UNIX_BACKLOG_RETRY_S >= until_s:
                raise TimeoutError('the backlog of the socket stayed full')
            time.sleep(limits.UNIX_BACKLOG_RETRY_S)
    except BaseException:
        sock.close()
        raise
    return sock


def _header_bytes(request: Request, host: str) -> bytes:
    """Request line and headers as bytes. A Content-Length is set, because Nova responds 500 to a chunked POST."""
    lines = [f'{request.method} {request.target} HTTP/1.1', f'host: {host}']
    has_accept_encoding = False
    for name, value in request.headers:
        if name == 'accept-encoding':
            has_accept_encoding = True
        elif name in ('host', 'content-length'):
            continue
        lines.append(f'{name}: {value}')
    if not has_accept_encoding:
        lines.append('accept-encoding: identity')
    if not request.is_retryable:
        lines.append(f'content-length: {len(request.body)}')
    # An instance id is the device_id of a port in Neutron, and a tenant may set it. With a line break in it the tenant
    # could add headers after the signature.
    header = '\r\n'.join(lines)
    if header.count('\r') != len(lines) - 1 or header.count('\n') != len(lines) - 1 or '\0' in header:
        raise BadRequest('The request has a character that no request may have.')
    try:
        return header.encode('latin-1') + b'\r\n\r\n'
    except UnicodeEncodeError:
        raise BadRequest('The request has a character that no request may have.') from None
