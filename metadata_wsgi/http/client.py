# SPDX-License-Identifier: Apache-2.0
"""The next hop: send one request on a kept connection and read its answer, changing nothing.

Both legs of the way are hops: namespace proxy to agent (a unix socket), agent to Nova (TCP or TLS).

Why not a client library: a target must go out as the bytes it came in (``%2f``, ``..`` and non-ASCII
included), which the libraries rewrite; and with urllib3 a leg cost 335 microseconds of CPU, four times the
server it stands in, against 40 here. The head of an answer is parsed by picohttpparser (gunicorn_h1c),
which the server uses too. What is done by hand is only RFC 9112's framing, the strict half of it: an
answer that could be read in two ways is no answer.

An answer is read whole before the guest sees its first byte, up to ``limits.MAX_BUFFERED_BYTES``: when the connection
breaks half way it can be asked for again. A larger one is passed on as it comes, so memory stays
bounded, and a break cuts the guest's connection, which it notices by the length.
"""

from __future__ import annotations

import functools
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, MaybeSent, NotSent
from metadata_wsgi.http.head_parser import IncompleteError, ParseError, parse_response
from metadata_wsgi.http.message import Headers, Request, Response, end_to_end
from metadata_wsgi.http.raw_socket import from_gevent_socket

_CHUNK_SIZE = re.compile(rb'[0-9A-Fa-f]{1,15}\Z')


class HttpClient:
    """One place to send requests to. ``exchange`` sends one, once. Shared by all threads of a worker.

    ``connect`` opens a connection within so many seconds; ``host`` is the Host header; at most ``keep``
    idle connections are kept.
    """

    def __init__(
        self,
        connect: Callable[[float], socket.socket],
        *,
        name: str,
        host: str,
        keep: int = limits.MAX_IDLE_CONNECTIONS,
    ) -> None:
        self.name = name
        self._connect = connect
        self._host = host
        self._idle: deque[_Connection] = deque(maxlen=keep)

    def __repr__(self) -> str:
        return f'<Hop {self.name}, {len(self._idle)} idle>'

    def send_request(
        self, request: Request, deadline: Deadline, connect_s: float = limits.CONNECT_TIMEOUT_S
    ) -> Response:
        """Send ``request`` and return the answer; NotSent or MaybeSent when there is none in time.

        A request that may not be repeated gets a new connection: on a kept one that the other side is
        just closing, nobody could say whether it was received.
        """
        head = _head(request, self._host)
        while request.is_retryable and self._idle:
            try:
                kept = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if not kept.quiet():
                kept.close()
                continue
            try:
                return self._on(kept, head, request, deadline)
            except _Stale:
                continue
        remaining_s = deadline.remaining_s()
        if remaining_s <= 0:
            raise NotSent(f'{self.name}: no time was left')
        try:
            opened = _Connection(self._connect(min(connect_s, remaining_s)))
        except OSError as error:
            raise NotSent(f'{self.name}: {str(error) or type(error).__name__}') from error
        return self._on(opened, head, request, deadline)

    def _on(self, connection: _Connection, head: bytes, request: Request, deadline: Deadline) -> Response:
        connection.until = deadline
        try:
            connection.send(head + request.body)
            status, reason, headers, closing = connection.read_head()
            pieces = connection.read_body(request.method, status, headers)
            begun: list[bytes] = []
            size = 0
            for piece in pieces:
                begun.append(piece)
                size += len(piece)
                if size >= limits.MAX_BUFFERED_BYTES:
                    return Response(status, reason, end_to_end(headers), _Rest(begun, pieces, connection))
        except (OSError, ValueError) as error:
            connection.close()
            if connection.kept and not connection.heard and not isinstance(error, TimeoutError):
                raise _Stale from error
            raise MaybeSent(f'{self.name}: {str(error) or type(error).__name__}') from error
        self._put_back(connection, closing)
        content = b''.join(begun)
        kept_headers = end_to_end(headers)
        if (
            request.method != 'HEAD'
            and status not in (204, 304)
            and not any(name == 'content-length' for name, _ in kept_headers)
        ):
            kept_headers.append(('content-length', str(len(content))))
        return Response(status, reason, kept_headers, [content] if content else [])

    def _put_back(self, connection: _Connection, closing: bool) -> None:
        if closing or not connection.clean or connection.ahead or len(self._idle) == self._idle.maxlen:
            connection.close()
            return
        connection.kept, connection.heard = True, False
        self._idle.append(connection)


class _Stale(Exception):
    """A kept connection was closed by the other side before it said anything."""


class _Connection:
    """A socket and what has been read from it but not yet used."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock: Any = from_gevent_socket(sock)
        self._data = b''
        self.kept = False
        self.heard = False
        self.clean = True
        self.until: Deadline | None = None

    def __del__(self) -> None:
        # A large answer that was thrown away for a better one, or a hop that is no more.
        self._sock.close()

    @property
    def ahead(self) -> bool:
        """Whether more has come than the answer: whose it is, nobody can say."""
        return bool(self._data)

    def quiet(self) -> bool:
        """Whether nothing has come since the last answer, neither its end nor bytes that would be taken for
        the next one."""
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
            self._sock.settimeout(self._patience_s())
            data = data[self._sock.send(data) :]

    def close(self) -> None:
        self.clean = False
        self._sock.close()

    def read_head(self) -> tuple[int, str, Headers, bool]:
        """Status, reason, all headers in lower case, and whether the connection ends with this answer."""
        self._more()
        while True:
            try:
                head = parse_response(self._data)
            except IncompleteError:
                if len(self._data) > limits.MAX_RESPONSE_HEADER_BYTES:
                    raise ValueError('the head of the answer is too long') from None
                self._more()
                continue
            except ParseError as error:
                raise ValueError('the answer is not HTTP') from error
            self._data = self._data[head['consumed'] :]
            if head['status'] >= 200:
                break
            if not self._data:
                self._more()
        headers = [(_name(name), value.decode('latin-1')) for name, value in head['headers']]
        if not all(name for name, _ in headers):
            raise ValueError('a header of the answer is folded')
        tokens = [
            token.strip().lower() for name, value in headers if name == 'connection' for token in value.split(',')
        ]
        closing = 'close' in tokens or (head['minor_version'] == 0 and 'keep-alive' not in tokens)
        return head['status'], head['message'].decode('latin-1'), headers, closing

    def read_body(self, method: str, status: int, headers: Headers) -> Iterator[bytes]:
        """The body in pieces as they come, its framing checked (RFC 9112, 6.3)."""
        if method == 'HEAD' or status in (204, 304):
            return iter(())
        codings = [value.strip().lower() for name, value in headers if name == 'transfer-encoding']
        lengths = {value.strip() for name, value in headers if name == 'content-length'}
        if codings:
            if codings != ['chunked'] or lengths:
                raise ValueError('the framing of the answer is ambiguous')
            return self._chunks()
        if not lengths:
            self.clean = False
            return self._until_closed()
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            raise ValueError('the length of the answer is ambiguous')
        return self._exactly(int(length))

    def _exactly(self, left: int) -> Iterator[bytes]:
        while left:
            if not self._data:
                self._more()
            piece, self._data = self._data[:left], self._data[left:]
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := self._chunk_size():
            yield from self._exactly(size)
            if self._line():
                raise ValueError('a chunk of the answer has not its length')
        while self._line():  # trailers belong to this connection
            pass

    def _chunk_size(self) -> int:
        digits = self._line().partition(b';')[0].rstrip(b' \t')
        if not _CHUNK_SIZE.match(digits):  # int takes signs and underscores too
            raise ValueError('a chunk of the answer has no length')
        return int(digits, 16)

    def _until_closed(self) -> Iterator[bytes]:
        while True:
            if self._data:
                yield self._data
                self._data = b''
            self._sock.settimeout(self._patience_s())
            self._data = self._sock.recv(limits.CHUNK_BYTES)
            if not self._data:
                return

    def _line(self) -> bytes:
        while b'\r\n' not in self._data:
            if len(self._data) > limits.MAX_RESPONSE_HEADER_BYTES:
                raise ValueError('a line of the answer is too long')
            self._more()
        line, _, self._data = self._data.partition(b'\r\n')
        return line

    def _more(self) -> None:
        self._sock.settimeout(self._patience_s())
        piece = self._sock.recv(limits.CHUNK_BYTES)
        if not piece:
            raise ConnectionResetError('the connection was closed before the answer was complete')
        self.heard = True
        self._data += piece

    def _patience_s(self) -> float:
        remaining_s = limits.READ_WRITE_TIMEOUT_S if self.until is None else self.until.remaining_s()
        if remaining_s <= 0:
            raise TimeoutError('the answer was not complete in time')
        return remaining_s


class _Rest:
    """A large answer's body: what was read already, then the rest as it comes."""

    def __init__(self, begun: list[bytes], pieces: Iterator[bytes], connection: _Connection) -> None:
        self._begun = begun
        self._pieces = pieces
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        self._connection.until = None
        yield from self._begun
        yield from self._pieces

    def close(self) -> None:
        """Called by the server (PEP 3333), also when the guest has gone."""
        self._connection.close()


@functools.lru_cache(maxsize=256)
def _name(name: bytes) -> str:
    return name.decode('latin-1').lower()


def unix_client(path: str) -> HttpClient:
    """A hop to the unix socket at ``path``."""

    def connect(timeout_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        return _connected(sock, path, timeout_s)

    return HttpClient(connect, name=f'unix:{path}', host='localhost')


def tcp_client(host: str, port: int, *, tls: ssl.SSLContext | None = None) -> HttpClient:
    """A hop to ``host`` (a name or an address, IPv6 without brackets) at ``port``, over TLS if a context is given."""
    authority = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'

    def connect(timeout_s: float) -> socket.socket:
        sock = socket.create_connection((host, port), timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return sock
        try:
            return tls.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise

    return HttpClient(connect, name=f'{"https" if tls else "http"}://{authority}', host=authority)


def _connected(sock: socket.socket, address: Any, timeout_s: float) -> socket.socket:
    sock.settimeout(timeout_s)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _head(request: Request, host: str) -> bytes:
    """The request's head, with the length that Nova needs: it answers 500 to a chunked POST."""
    lines = [f'{request.method} {request.target} HTTP/1.1', f'host: {host}']
    said_encoding = False
    for name, value in request.headers:
        if name == 'accept-encoding':
            said_encoding = True
        elif name in ('host', 'content-length'):
            continue
        lines.append(f'{name}: {value}')
    if not said_encoding:
        lines.append('accept-encoding: identity')
    if not request.is_retryable:
        lines.append(f'content-length: {len(request.body)}')
    # An instance id is what Quantum says, and a tenant may write a port's device_id: a line break in it would
    # let the tenant add headers of its own behind the signature.
    head = '\r\n'.join(lines)
    if head.count('\r') != len(lines) - 1 or head.count('\n') != len(lines) - 1 or '\0' in head:
        raise BadRequest('The request has a character that no request may have.')
    try:
        return head.encode('latin-1') + b'\r\n\r\n'
    except UnicodeEncodeError:
        raise BadRequest('The request has a character that no request may have.') from None
