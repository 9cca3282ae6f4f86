# SPDX-License-Identifier: Apache-2.0
"""The gunicorn worker of the metadata path: one greenlet for each connection, limits for each guest.

What it changes in gunicorn's gevent worker, and why:

- Head and first piece of body leave in one segment: a guest's and our own client read once.
- The answer's own Date and Server are kept; gunicorn would add a second pair.
- A worker that stops closes kept connections as soon as they are idle, so a restart does not wait for
  namespace proxies that only keep a connection open. What is under way is finished.
- A refused request is answered with a constant sentence, 400, 414 or 431, and the connection closed.
- Beside the sockets that gunicorn opened it serves those of the keeper, each with the namespace it is in.
- One guest may hold ``guest_connections`` connections (``shares`` has the rules), must send a head within
  ``HEAD_S`` and ``HEAD_BYTES`` and a body within ``BODY_S``, and may let a body or an answer stand still for
  ``STALL_S``; the guests beside it notice nothing (haproxy's limit is for the whole router: 1,100 half-sent requests
  of one guest delayed the others by 29 s).
- A connection whose request was not read to its end is closed: gunicorn would read on, as long as the guest sends.
- A guest that did not ask the metadata address came past the rules: its connection is closed.
"""

from __future__ import annotations

import errno
import functools
import logging
import re
import socket
import time
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http import errors
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import FileWrapper, Response, WSGIErrorsWrapper
from gunicorn.util import http_date
from gunicorn.workers.ggevent import GeventWorker

from metadata_wsgi import context, destination, sockets, wire
from metadata_wsgi.keeper.following import Following
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.seldom import Seldom
from metadata_wsgi.shares import Shares

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

LOG = logging.getLogger(__name__)

HEAD_S = 10.0
HEAD_BYTES = 1 << 15
BODY_S = 30.0
STALL_S = 10.0
KEEP_S = 75.0
DRAIN_S = 1.0
DRAIN_PIECES = 256
GUEST_CONNECTIONS = 128
"""A boot is 28 requests, some of them at once; cloud-init, Ignition and an agent may ask together."""

OPTION = re.compile(r'[ \t]*,[ \t]*')

REFUSALS = {
    errors.LimitRequestLine: (414, 'URI Too Long'),
    errors.LimitRequestHeaders: (431, 'Request Header Fields Too Large'),
}
HOPS = {
    socket.AF_INET: ((socket.IPPROTO_IP, socket.IP_TTL),),
    # Both, because the connection of an IPv4 guest to a socket of both families is one of this kind.
    socket.AF_INET6: ((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS), (socket.IPPROTO_IP, socket.IP_TTL)),
}
# A peer that goes away is no fault of ours, and none that an operator could mend.
GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF})


class MetadataWorker(GeventWorker):
    """Serves guests (TCP) or namespace proxies (a unix socket)."""

    guest_connections = GUEST_CONNECTIONS
    keeper: tuple[str, str] | None = None
    """Path of the keeper's ``listeners`` socket and the mode in which to follow it; set by the server."""

    any_destination = False
    """Whether to serve those too who asked another address; set by the server."""

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        if self.keeper:
            sockets.raise_descriptor_limit()
        self._idle: set[Any] = set()
        self._seldom = Seldom(60)
        self._shares = Shares(each=self.guest_connections, total=self.worker_connections - 1)
        self._errors = WSGIErrorsWrapper(self.cfg)
        self._settings = Still(self.cfg)
        self._pool = Pool(self.worker_connections)
        self._servers: dict[str, StreamServer] = {}
        super().init_process()

    def run(self) -> None:
        """Called by gunicorn: serve until told to stop, then finish what is under way."""
        for number, listening in enumerate(self.sockets):
            self._listen(f'#{number}', listening, None)
        following = self._follow()
        while self.alive:
            self.notify()
            gevent.sleep(1.0)
        if following:
            following.stop()
        for server in self._servers.values():
            server.close()
        self._let_go()
        give_up_at = time.monotonic() + self.cfg.graceful_timeout
        while len(self._pool) and time.monotonic() < give_up_at:
            self.notify()
            gevent.sleep(0.05)
        self._pool.kill(timeout=1)

    def _listen(self, key: str, listening: Any, namespace: context.Namespace | None) -> None:
        name = listening.getsockname()

        def accepted(client: Any, addr: Any) -> None:
            self.serve(name, client, addr, namespace)

        listening.setblocking(False)
        self._servers[key] = StreamServer(listening, handle=accepted, spawn=self._pool)
        self._servers[key].start()

    def _follow(self) -> Following | None:
        if self.keeper is None:
            return None

        def serve(listener: Listener, handed: socket.socket) -> None:
            if self.alive:
                self._listen(listener.key, handed, context.Namespace(listener.router_id, listener.network_id))

        def leave(listener: Listener) -> None:
            server = self._servers.pop(listener.key, None)
            if server:
                server.close()

        path, mode = self.keeper
        following = Following(path, mode, serve=serve, leave=leave, sleep=gevent.sleep)
        gevent.spawn(following.run)
        return following

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish what is under way, let go of what is only kept."""
        super().handle_exit(sig, frame)
        gevent.spawn(self._let_go)

    def _let_go(self) -> None:
        for client in list(self._idle):
            try:
                client.shutdown(2)
            except OSError as error:
                LOG.debug('A kept connection was gone already: %s', error)

    def serve(self, server: Any, client: Any, addr: Any, namespace: context.Namespace | None) -> None:
        """Serve one connection, in a greenlet of its own."""
        if isinstance(addr, tuple) and not self._came_by_the_rules(client, addr[0]):
            client.close()
            return
        # A namespace proxy has no address, and many guests behind it.
        keys = self._shares.take(namespace, addr[0]) if isinstance(addr, tuple) else ()
        if keys is None:
            LOG.debug('%s holds all the connections that it may', addr[0])
            client.close()
            return
        try:
            self._requests(server, client, addr, namespace, keys)
        except OSError as error:
            if error.errno not in GONE and not isinstance(error, TimeoutError):
                LOG.warning('Connection broken: %s', error)
        finally:
            self._shares.release(keys)
            client.close()

    def _came_by_the_rules(self, client: Any, guest: str) -> bool:
        try:
            if self.any_destination or destination.is_metadata(client, guest):
                return True
        except OSError as error:
            LOG.debug('Gone before it was served: %s', error)
            return False
        if self._seldom.due():
            LOG.warning('Refused %s, who did not ask the metadata address: are the rules of this router there?', guest)
        return False

    def _requests(
        self, server: Any, client: Any, addr: Any, namespace: context.Namespace | None, keys: tuple[Hashable, ...]
    ) -> None:
        client.settimeout(STALL_S)
        # Where no peer may say anything about others, the parser need not ask which may.
        may_say = self._settings.secure_scheme_headers or self._settings.forwarder_headers
        requests = parser(self._settings, client, addr if may_say else '')
        wait_s = HEAD_S
        while True:
            try:
                with Turn(self._shares, client, keys):
                    request = self._next(requests, client, wait_s)
            except StopIteration:
                return
            except errors.NoMoreData:
                return
            except errors.ParseException as error:
                _refuse(client, error)
                return
            if request is None:
                return
            environ = self._environ(request, client, addr, server)
            if namespace is not None:
                environ[context.NAMESPACE] = namespace
            turn = Turn(self._shares, client, keys)
            if expects_body(request):
                environ['wsgi.input'] = Body(request.body, turn)
            if not self._answer(request, client, environ, turn):
                return
            wait_s = KEEP_S

    def _next(self, parser: Any, client: Any, wait_s: float) -> Any:
        """The next request's head; None when it does not come in time."""
        kept = wait_s == KEEP_S
        if kept:
            if not self.alive:
                return None
            self._idle.add(client)
            client.settimeout(KEEP_S)
        request = None
        late = gevent.Timeout.start_new(wait_s)
        try:
            request = next(parser)
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
        finally:
            late.close()
            if kept:
                self._idle.discard(client)
                client.settimeout(STALL_S)
        return request

    def _answer(self, request: Any, client: Any, environ: WSGIEnvironment, turn: Turn) -> bool:
        """Call the application; whether the connection may serve another request."""
        reply = Reply(request, client, self._settings)
        if not self.alive:
            reply.force_close()
        try:
            body = self.wsgi(environ, reply.start_response)
            try:
                for piece in body:
                    with turn:
                        reply.write(piece)
                reply.close()
            finally:
                if hasattr(body, 'close'):
                    body.close()
        except OSError:
            raise
        except errors.ParseException as error:
            # A malformed body shows itself only while it is read.
            if not reply.headers_sent:
                _refuse(client, error)
            return False
        except Exception:
            # Begun and not ended: the guest must see a broken answer, not a short one.
            LOG.exception('The answer was cut')
            return False
        if unread(request):
            _drain(client)
            return False
        return not reply.should_close()

    def _environ(self, request: Any, client: Any, addr: Any, server: Any) -> WSGIEnvironment:
        if request._expected_100_continue:
            client.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        host, port = (str(server[0]), str(server[1])) if isinstance(server, tuple) else ('localhost', '')
        environ: WSGIEnvironment = {
            'REQUEST_METHOD': request.method,
            'SCRIPT_NAME': '',
            'PATH_INFO': unquote_to_bytes(request.path.encode('latin-1')).decode('latin-1'),
            'QUERY_STRING': request.query or '',
            'RAW_URI': request.uri,
            'SERVER_NAME': host,
            'SERVER_PORT': port,
            'SERVER_PROTOCOL': f'HTTP/{request.version[0]}.{request.version[1]}',
            'SERVER_SOFTWARE': 'metadata_wsgi',
            'REMOTE_ADDR': str(addr[0]) if isinstance(addr, tuple) else '',
            'gunicorn.socket': client,
            'wsgi.version': (1, 0),
            'wsgi.url_scheme': 'http',
            'wsgi.input': request.body,
            'wsgi.input_terminated': True,
            'wsgi.errors': self._errors,
            'wsgi.file_wrapper': FileWrapper,
            'wsgi.multithread': True,
            'wsgi.multiprocess': True,
            'wsgi.run_once': False,
        }
        for name, value in request.headers:
            key = name.replace('-', '_')
            if key in ('CONTENT_TYPE', 'CONTENT_LENGTH'):
                environ[key] = value
                continue
            key = 'HTTP_' + key
            environ[key] = f'{environ[key]},{value}' if key in environ else value
        return environ


class Still:
    """gunicorn's settings as plain attributes, for what is read several times a request: a worker's do not change."""

    def __init__(self, cfg: Any) -> None:
        self.__dict__.update(
            {name: setting.get() for name, setting in cfg.settings.items() if not hasattr(type(cfg), name)}
        )
        self.__dict__['is_ssl'] = cfg.is_ssl
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


class OneRequest(Request):
    """A request, and where it ends."""

    # gunicorn's own bound is the number of fields times the size of each: megabytes, looked through again with
    # every byte that comes.
    max_buffer_headers = property(lambda self: HEAD_BYTES, lambda self, computed: None)

    def set_body_reader(self) -> None:
        """Called by gunicorn when the head is complete."""
        super().set_body_reader()
        # gunicorn sees it only where it stands alone.
        if any(name == 'CONNECTION' and 'close' in OPTION.split(value.lower()) for name, value in self.headers):
            self.force_close()

    def should_close(self) -> bool:
        """Also where the body was not read to its end: what follows is no request."""
        return bool(super().should_close()) or unread(self)


class Parser(RequestParser):
    """The requests of one connection."""

    mesg_class = OneRequest


def parser(cfg: Any, client: Any, addr: Any) -> Parser:
    """The requests that ``client`` sends, one after the other."""
    return Parser(cfg, client, addr)


class Turn:
    """While it is entered it is the guest's turn, to say something or to take it."""

    def __init__(self, shares: Shares, client: Any, keys: tuple[Hashable, ...]) -> None:
        self._shares = shares
        self._client = client
        self._keys = keys

    def __enter__(self) -> None:
        if self._keys:
            self._shares.waits(self._client, self._keys)

    def __exit__(self, *exc: object) -> None:
        if self._keys:
            self._shares.speaks(self._client)


class Body:
    """``wsgi.input``: a body that must be there in ``within_s``, however steadily it drips."""

    def __init__(self, body: Any, turn: Turn, within_s: float = BODY_S) -> None:
        self._body = body
        self._turn = turn
        self._until = time.monotonic() + within_s

    def _within(self, method: Any, *args: Any) -> Any:
        late = TimeoutError('the body came too slowly')
        with self._turn, gevent.Timeout(max(0.001, self._until - time.monotonic()), late):
            return method(*args)

    def read(self, size: int | None = None) -> bytes:
        """PEP 3333."""
        return self._within(self._body.read, size)

    def readline(self, size: int | None = None) -> bytes:
        """PEP 3333."""
        return self._within(self._body.readline, size)

    def readlines(self, size: int | None = None) -> list[bytes]:
        """PEP 3333."""
        return self._within(self._body.readlines, size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b'')


def expects_body(request: Any) -> bool:
    """Whether the head says that a body follows."""
    reader = request.body.reader
    return isinstance(reader, ChunkedReader) or reader.length > 0


def unread(request: Any) -> bool:
    """Whether it is not known where the next request begins, because this one's body was not read to its end."""
    reader = request.body.reader
    if request.body.failed:
        return True
    return reader.length > 0 if isinstance(reader, LengthReader) else reader.parser is not None


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


def _refuse(client: Any, error: Exception) -> None:
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
    _drain(client)


def _drain(client: Any) -> None:
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
