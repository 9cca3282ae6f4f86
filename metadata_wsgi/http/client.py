# SPDX-License-Identifier: Apache-2.0
"""HTTP client with a connection pool: namespace proxy to agent (unix socket), agent to Nova (TCP or TLS).

No library is used, for two reasons. The request target must be sent unchanged (also ``%2f``, ``..`` and non-ASCII), but
the libraries rewrite it. urllib3 takes 335 microseconds of CPU time for a request, this client 40. ``response_reader``
reads the response.

A response up to ``limits.MAX_BUFFERED_BYTES`` is received completely before the instance gets its first byte. So the
request can be retried if the connection to the service breaks. A larger response is streamed, so memory is bounded. If
the connection breaks during the stream, the server closes the instance's connection too. So the instance detects that
the body is incomplete.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, MaybeSent, NotSent
from metadata_wsgi.http.message import Request, Response
from metadata_wsgi.http.response_reader import ClientConnection, StreamedBody
from metadata_wsgi.http.tls_socket import TlsSocket
from metadata_wsgi.net import resolver


class HttpClient(Protocol):
    """Sends requests to one service. :class:`PooledHttpClient` is the implementation; tests use a fake."""

    name: str
    """The name of the service in log lines, for example ``http://nova:8775``."""

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """Send ``request`` once and return the response.

        Raises NotSent or MaybeSent if there is no response before ``deadline``, and BadRequest for a request that
        cannot be sent.
        """


class PooledHttpClient:
    """HttpClient of one host or unix socket, with a pool of keep-alive connections. Shared by all threads of a worker.

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
        self._idle: deque[ClientConnection] = deque(maxlen=max_idle)

    def __repr__(self) -> str:
        return f'<HTTP client of {self.name}, {len(self._idle)} idle connections>'

    def send_request(self, request: Request, deadline: Deadline) -> Response:
        """See :meth:`HttpClient.send_request`.

        A request that is not retryable always gets a new connection. The server may close an idle connection just when
        the request is sent on it. Then it would be unknown whether the server received the request.
        """
        header = header_bytes(request, self._host)
        now_s = deadline.clock()
        self._close_older_than(now_s - limits.MAX_IDLE_S)
        while request.is_retryable and self._idle:
            try:
                idle = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if not idle.is_reusable():
                idle.close()
                continue
            idle.used_at_s = now_s
            try:
                return self._send_on(idle, header, request, deadline)
            except _StaleConnection:
                continue
        remaining_s = deadline.remaining_s()
        if remaining_s <= 0:
            raise NotSent(f'{self.name}: no time was left to connect')
        try:
            opened = ClientConnection(self._connect(min(limits.CONNECT_TIMEOUT_S, remaining_s)))
        except OSError as error:
            raise NotSent(f'{self.name}: {str(error) or type(error).__name__}') from error
        opened.used_at_s = now_s
        return self._send_on(opened, header, request, deadline)

    def _send_on(self, connection: ClientConnection, header: bytes, request: Request, deadline: Deadline) -> Response:
        connection.deadline = deadline
        try:
            connection.send(header + request.body)
            received = connection.read_header()
            pieces = connection.read_body(request.method, received)
            buffered: list[bytes] = []
            size = 0
            for piece in pieces:
                buffered.append(piece)
                size += len(piece)
                if size >= limits.MAX_BUFFERED_BYTES:
                    body = StreamedBody(buffered, pieces, connection)
                    return Response(received.status, received.reason, received.headers, body)
        except (OSError, ValueError) as error:
            connection.close()
            if connection.reused and not connection.received_any:
                if not isinstance(error, TimeoutError):
                    raise _StaleConnection from error
                # Perhaps the network has dropped all idle connections. So the retry must not take the next of them.
                self._close_older_than(math.inf)
            raise MaybeSent(f'{self.name}: {str(error) or type(error).__name__}') from error
        self._release(connection, received.is_last)
        content = b''.join(buffered)
        if received.length is None and request.method != 'HEAD' and received.status not in (204, 304):
            received.headers.append(('content-length', str(len(content))))
        return Response(received.status, received.reason, received.headers, [content] if content else [])

    def _close_older_than(self, used_at_s: float) -> None:
        """Close the idle connections whose last request was sent before ``used_at_s``. The oldest are at the left."""
        try:
            while self._idle[0].used_at_s < used_at_s:
                self._idle.popleft().close()
        except IndexError:  # no connection is left, or another thread took it
            pass

    def _release(self, connection: ClientConnection, is_last: bool) -> None:
        """Put the connection into the pool, or close it."""
        pool_is_full = len(self._idle) == self._idle.maxlen
        if is_last or not connection.reusable or connection.has_surplus_data or pool_is_full:
            connection.close()
            return
        connection.reused, connection.received_any = True, False
        self._idle.append(connection)


class _StaleConnection(Exception):
    """The server closed an idle connection and sent no byte of the response."""


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

    Raises OSError, or TimeoutError after ``timeout_s``. While the backlog of the listening socket is full, connect()
    fails with EAGAIN, and the kernel sends no event when there is room. gevent's connect() would try again and again
    without a pause, because an unconnected unix socket is always writable. So this function waits between two attempts.
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


def header_bytes(request: Request, host: str) -> bytes:
    """Request line and headers as bytes. Raises BadRequest for a request that cannot be sent.

    A Content-Length is set, because Nova responds 500 to a chunked POST.
    """
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
    # An instance id is the device_id of a port in Neutron, and a tenant may set the device_id. If it could contain a
    # line break, the tenant could add headers to the signed request.
    header = '\r\n'.join(lines)
    if header.count('\r') != len(lines) - 1 or header.count('\n') != len(lines) - 1 or '\0' in header:
        raise BadRequest('The request has a character that no request may have.')
    try:
        return header.encode('latin-1') + b'\r\n\r\n'
    except UnicodeEncodeError:
        raise BadRequest('The request has a character that no request may have.') from None
