# SPDX-License-Identifier: Apache-2.0
"""One exchange with the next hop, on kept connections, changing nothing that is end to end.

Both legs of the way use it: namespace proxy to agent (a unix socket) and agent to Nova (TCP or TLS).
Target, status, header values and body pass as the bytes they are; what belongs to one connection
only (RFC 9110, 7.6.1) is dropped in both directions; a redirect is an answer like any other.

An answer is read whole before the guest sees its first byte, up to ``buffer_bytes``: a connection
that breaks half way can then be tried again. Larger answers are passed on as they come, so memory
stays bounded, and a break cuts the guest's connection, which it notices by the length.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection

from metadata_wsgi import wire
from metadata_wsgi.context import Deadline
from metadata_wsgi.errors import MaybeSent, NotSent, RefusedError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Headers = list[tuple[str, str]]

READS = frozenset({'GET', 'HEAD'})
"""Methods that may be repeated: they change nothing (Nova takes every method on an ordinary path as GET,
but a PUT or DELETE may mean more to whatever stands in its place)."""

BUFFER_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
STALL_S = 10.0
"""How long a large answer, once begun, may stand still."""


class TooLarge(RefusedError):
    """The body is longer than the limit."""


@dataclass(frozen=True, slots=True)
class Request:
    """What goes to the next hop. ``target`` is the raw request target, its bytes as latin-1."""

    method: str
    target: str
    headers: Headers
    body: bytes = b''

    @property
    def is_read(self) -> bool:
        """Whether it may be sent twice."""
        return self.method in READS and not self.body


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: end-to-end headers only, and the body in one piece or as it comes."""

    status: int
    reason: str
    headers: Headers
    body: Iterable[bytes]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Give it to the guest, as a WSGI application."""
        start_response(f'{self.status} {self.reason}'.rstrip() if self.reason else f'{self.status} ', self.headers)
        return self.body


def target(environ: WSGIEnvironment) -> str:
    """The request target in origin form, undecoded; RefusedError where there is none.

    gunicorn keeps the raw one in RAW_URI; other servers decode, and quoting again is the best there
    is. An absolute URI (RFC 9112, 3.2.2) loses its authority: who answers here is not the guest's say.
    """
    raw: str | None = environ.get('RAW_URI')
    if raw is None:
        raw = quote(
            (environ.get('SCRIPT_NAME', '') + environ.get('PATH_INFO', '')).encode('latin-1'), safe="/:@!$&'()*+,;=~"
        )
        if environ.get('QUERY_STRING'):
            raw += '?' + environ['QUERY_STRING']
    if not raw.startswith('/'):
        scheme, separator, rest = raw.partition('://')
        if not separator or scheme.lower() not in ('http', 'https'):
            raise RefusedError('The request target must be a path.')
        slash = rest.find('/')
        raw = rest[slash:] if slash >= 0 else '/'
    return raw


def headers(environ: WSGIEnvironment) -> Headers:
    """The request's end-to-end headers, in the server's order."""
    sent = [(key[5:].replace('_', '-').lower(), value) for key, value in environ.items() if key.startswith('HTTP_')]
    if environ.get('CONTENT_TYPE'):
        sent.append(('content-type', environ['CONTENT_TYPE']))
    return end_to_end(sent)


def end_to_end(sent: Headers) -> Headers:
    """``sent`` without what belongs to the connection, by RFC or because ``Connection`` names it."""
    named = {
        token.strip().lower() for name, value in sent if name.lower() == 'connection' for token in value.split(',')
    }
    dropped = wire.HOP_BY_HOP | named
    return [(name, value) for name, value in sent if name.lower() not in dropped]


def body(environ: WSGIEnvironment, limit: int) -> bytes:
    """The whole request body. TooLarge above ``limit`` bytes, RefusedError when the guest stopped half way."""
    declared = environ.get('CONTENT_LENGTH') or ''
    if declared and int(declared) > limit:
        raise TooLarge(f'A request body may have at most {limit} bytes.')
    stream = environ['wsgi.input']
    if declared:
        content: bytes = stream.read(int(declared))
        if len(content) < int(declared):
            raise RefusedError('The request body ended before its Content-Length.')
        return content
    if not environ.get('wsgi.input_terminated'):
        return b''
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(f'A request body may have at most {limit} bytes.')
    return content


class Hop:
    """One place to send requests to: ``exchange`` sends one, once. Shared by all threads of a worker."""

    def __init__(
        self, make_pool: Callable[[], urllib3.HTTPConnectionPool], name: str, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        self._make_pool = make_pool
        self._pool = make_pool()
        self._buffer_bytes = buffer_bytes
        self.name = name

    def __repr__(self) -> str:
        return f'<Hop {self.name}>'

    def exchange(self, request: Request, deadline: Deadline, connect_s: float = 3.0) -> Answer:
        """Send ``request`` and return the answer; NotSent or MaybeSent when there is none in time.

        A request that may not be repeated gets a connection of its own: on a kept one that the other
        side is just closing, nobody could say whether it was received.
        """
        remaining_s = deadline.remaining_s()
        if remaining_s <= 0:
            raise NotSent(f'{self.name}: no time was left')
        pool = self._pool if request.is_read else self._make_pool()
        try:
            response = pool.urlopen(
                request.method,
                _sealed(request.target),
                body=request.body or None,
                headers=urllib3.HTTPHeaderDict(_framed(request)),
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=min(connect_s, remaining_s), read=remaining_s),
                preload_content=False,
                decode_content=False,
            )
            return self._answer(request, response, deadline)
        except (exceptions.NewConnectionError, exceptions.ConnectTimeoutError, exceptions.SSLError) as error:
            raise NotSent(f'{self.name}: {_reason(error)}') from error
        except (exceptions.HTTPError, OSError) as error:
            raise MaybeSent(f'{self.name}: {_reason(error)}') from error
        except ValueError as error:  # http.client refuses control characters in a target (InvalidURL)
            raise RefusedError('The request target has a character that no target may have.') from error

    def _answer(self, request: Request, response: urllib3.BaseHTTPResponse, deadline: Deadline) -> Answer:
        kept = end_to_end([(name.lower(), value) for name, value in response.headers.iteritems()])
        # The server that speaks to the guest writes a Date and a Server line of its own.
        kept = [(name, value) for name, value in kept if name not in ('date', 'server')]
        pieces, whole = self._read(response, deadline)
        if not whole:
            return Answer(response.status, response.reason or '', kept, _Rest(pieces, response))
        content = b''.join(pieces)
        response.release_conn()
        bodiless = request.method == 'HEAD' or response.status in (204, 304)
        if not bodiless and not any(name == 'content-length' for name, _ in kept):
            kept.append(('content-length', str(len(content))))
        return Answer(response.status, response.reason or '', kept, [content] if content else [])

    def _read(self, response: urllib3.BaseHTTPResponse, deadline: Deadline) -> tuple[list[bytes], bool]:
        """As much of the body as fits the buffer, and whether that is all of it."""
        pieces: list[bytes] = []
        size = 0
        while size < self._buffer_bytes:
            remaining_s = deadline.remaining_s()
            if remaining_s <= 0:
                response.close()
                raise exceptions.TimeoutError('the answer was not complete in time')
            _settimeout(response, remaining_s)
            piece = response.read1(CHUNK_BYTES) if response.chunked is False else response.read(CHUNK_BYTES)
            if not piece:
                return pieces, True
            pieces.append(piece)
            size += len(piece)
        return pieces, False


class _Rest:
    """A large answer's body: what was read already, then the rest as it comes."""

    def __init__(self, begun: list[bytes], response: urllib3.BaseHTTPResponse) -> None:
        self._begun = begun
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._begun
        _settimeout(self._response, STALL_S)
        yield from self._response.stream(CHUNK_BYTES)
        self._response.release_conn()

    def close(self) -> None:
        """Called by the server (PEP 3333) also when the guest has gone: the connection is of no more use."""
        self._response.close()


def unix_hop(path: str, *, connections: int = 256, buffer_bytes: int = BUFFER_BYTES) -> Hop:
    """A hop to the unix socket at ``path``."""

    class Connection(_UnixConnection):
        socket_path = path

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

    return Hop(lambda: Pool('localhost', maxsize=connections), f'unix:{path}', buffer_bytes)


def tcp_hop(host: str, port: int, *, tls: ssl.SSLContext | None = None, connections: int = 256) -> Hop:
    """A hop to ``host`` (a name or an address, IPv6 without brackets) at ``port``, over TLS if a context is given."""
    if tls is None:
        return Hop(lambda: _PlainPool(host, port, maxsize=connections), f'http://{host}:{port}')
    return Hop(lambda: _TLSPool(host, port, maxsize=connections, ssl_context=tls), f'https://{host}:{port}')


class _RawTarget:
    """A connection that writes the target's own bytes: it opens what ``_sealed`` closed."""

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        super().request(method, bytes.fromhex(url[1:]).decode('latin-1'), *args, **kwargs)  # type: ignore[misc]

    def _encode_request(self, request: str) -> bytes:
        # http.client would insist on ASCII; a guest's non-ASCII target is Nova's to judge.
        return request.encode('latin-1')


class _PlainConnection(_RawTarget, HTTPConnection):
    pass


class _TLSConnection(_RawTarget, HTTPSConnection):
    pass


class _UnixConnection(_RawTarget, HTTPConnection):
    socket_path = ''

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout if isinstance(self.timeout, (int, float)) else None)
        try:
            self.sock.connect(self.socket_path)
        except OSError as error:
            self.close()
            raise exceptions.NewConnectionError(self, f'{self.socket_path}: {error}') from error


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def _sealed(raw: str) -> str:
    """The target in letters that urllib3 leaves alone: it would rewrite ``%2f``, ``..`` and non-ASCII bytes."""
    return '/' + raw.encode('latin-1').hex()


def _framed(request: Request) -> Headers:
    """Its headers, with the length that Nova needs: it answers 500 to a chunked POST."""
    framed = [(name, value) for name, value in request.headers if name != 'content-length']
    if not any(name == 'accept-encoding' for name, _ in framed):
        framed.append(('accept-encoding', 'identity'))
    if not any(name == 'user-agent' for name, _ in framed):
        framed.append(('user-agent', 'metadata_wsgi'))
    if request.body or request.method not in READS:
        framed.append(('content-length', str(len(request.body))))
    return framed


def _settimeout(response: urllib3.BaseHTTPResponse, seconds: float) -> None:
    sock = getattr(response.connection, 'sock', None)
    if sock is not None:
        sock.settimeout(seconds)


def _reason(error: Exception) -> str:
    """The innermost reason: urllib3 wraps it in the pool's and the target's names."""
    while (inner := getattr(error, 'reason', None) or error.__cause__) is not None and isinstance(inner, Exception):
        error = inner
    return f'{type(error).__name__}: {error}' if str(error) else type(error).__name__
