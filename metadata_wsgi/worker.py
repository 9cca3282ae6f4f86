# SPDX-License-Identifier: Apache-2.0
"""The gunicorn worker of the metadata path: one greenlet for each connection, limits for each guest.

What it changes in gunicorn's gevent worker, and why:

(``reading`` has what is read, ``reply`` what is sent.)

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
import logging
import socket
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http import errors
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper
from gunicorn.workers.ggevent import GeventWorker

from metadata_wsgi import context, destination, sockets
from metadata_wsgi.keeper.following import Following
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.reading import Body, Turn, expects_body, parser, unread
from metadata_wsgi.reply import Reply, drain, refuse
from metadata_wsgi.seldom import Seldom
from metadata_wsgi.shares import Shares

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

LOG = logging.getLogger(__name__)

HEAD_S = 10.0
STALL_S = 10.0
KEEP_S = 75.0
GUEST_CONNECTIONS = 128
"""A boot is 28 requests, some of them at once; cloud-init, Ignition and an agent may ask together."""

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
                refuse(client, error)
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
                refuse(client, error)
            return False
        except Exception:
            # Begun and not ended: the guest must see a broken answer, not a short one.
            LOG.exception('The answer was cut')
            return False
        if unread(request):
            drain(client)
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
