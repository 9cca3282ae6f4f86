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

import _socket
import errno
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

import gevent
from gunicorn.http import errors
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper
from gunicorn.workers.ggevent import GeventWorker

from metadata_wsgi import context, destination, sockets
from metadata_wsgi.arrivals import Crew, Door
from metadata_wsgi.connection import Connection
from metadata_wsgi.keeper.following import Following
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.reading import Body, Head, Requests
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
        self._idle: set[Connection] = set()
        self._seldom = Seldom(60)
        self._shares = Shares(each=self.guest_connections, total=self.worker_connections - 1)
        self._settings = Still(self.cfg)
        self._crew = Crew(self.worker_connections)
        self._doors: dict[str, Door] = {}
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
        for door in self._doors.values():
            door.close()
        self._let_go()
        give_up_at = time.monotonic() + self.cfg.graceful_timeout
        while len(self._crew) and time.monotonic() < give_up_at:
            self.notify()
            gevent.sleep(0.05)

    def _listen(self, key: str, listening: Any, namespace: context.Namespace | None) -> None:
        inside = self._environ(listening.getsockname(), namespace)

        def arrived(sock: _socket.socket, address: Any) -> None:
            self._serve(sock, address, namespace, inside)

        self._doors[key] = Door(listening, self._crew, arrived)
        self._doors[key].open()

    def _environ(self, server: Any, namespace: context.Namespace | None) -> WSGIEnvironment:
        """What is the same for all requests that come in at one address."""
        host, port = (str(server[0]), str(server[1])) if isinstance(server, tuple) else ('localhost', '')
        environ: WSGIEnvironment = {
            'SCRIPT_NAME': '',
            'SERVER_NAME': host,
            'SERVER_PORT': port,
            'SERVER_SOFTWARE': 'metadata_wsgi',
            'wsgi.version': (1, 0),
            'wsgi.url_scheme': 'http',
            'wsgi.input_terminated': True,
            'wsgi.errors': WSGIErrorsWrapper(self.cfg),
            'wsgi.file_wrapper': FileWrapper,
            'wsgi.multithread': True,
            'wsgi.multiprocess': True,
            'wsgi.run_once': False,
        }
        if namespace is not None:
            environ[context.NAMESPACE] = namespace
        return environ

    def _follow(self) -> Following | None:
        if self.keeper is None:
            return None

        def serve(listener: Listener, handed: socket.socket) -> None:
            if self.alive:
                self._listen(listener.key, handed, context.Namespace(listener.router_id, listener.network_id))

        def leave(listener: Listener) -> None:
            door = self._doors.pop(listener.key, None)
            if door:
                door.close()

        path, mode = self.keeper
        following = Following(path, mode, serve=serve, leave=leave, sleep=gevent.sleep)
        gevent.spawn(following.run)
        return following

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish what is under way, let go of what is only kept."""
        super().handle_exit(sig, frame)
        gevent.spawn(self._let_go)

    def _let_go(self) -> None:
        for connection in list(self._idle):
            try:
                connection.shutdown(2)
            except OSError as error:
                LOG.debug('A kept connection was gone already: %s', error)

    def _serve(
        self, sock: _socket.socket, address: Any, namespace: context.Namespace | None, inside: WSGIEnvironment
    ) -> None:
        """Serve one connection, in a greenlet of its own."""
        # A namespace proxy has no address, and many guests behind it.
        guest = address[0] if isinstance(address, tuple) else ''
        if guest and not self._came_by_the_rules(sock, guest):
            sock.close()
            return
        keys = self._shares.take(namespace and namespace.id, guest) if guest else ()
        if keys is None:
            LOG.debug('%s holds all the connections that it may', guest)
            sock.close()
            return
        connection = Connection(sock)
        if keys:
            connection.before_wait = lambda: self._shares.waits(connection, keys)
        try:
            self._requests(connection, address, {**inside, 'REMOTE_ADDR': guest, 'gunicorn.socket': connection})
        except OSError as error:
            if error.errno not in GONE and not isinstance(error, TimeoutError):
                LOG.warning('Connection broken: %s', error)
        finally:
            self._shares.speaks(connection)
            self._shares.release(keys)
            connection.close()

    def _came_by_the_rules(self, sock: _socket.socket, guest: str) -> bool:
        try:
            if self.any_destination or destination.is_metadata(sock, guest):
                return True
        except OSError as error:
            LOG.debug('Gone before it was served: %s', error)
            return False
        if self._seldom.due():
            LOG.warning('Refused %s, who did not ask the metadata address: are the rules of this router there?', guest)
        return False

    def _requests(self, connection: Connection, address: Any, environ: WSGIEnvironment) -> None:
        # Where no peer may say anything about others, the parser need not ask which may.
        may_say = self._settings.secure_scheme_headers or self._settings.forwarder_headers
        requests = Requests(self._settings, connection, address if may_say else '')
        wait_s, patience_s = HEAD_S, STALL_S
        while True:
            try:
                head = self._next(requests, connection, wait_s, patience_s)
            except errors.ParseException as error:
                refuse(connection, error)
                return
            if head is None or not self._answer(head, connection, {**environ, **head.fields}):
                return
            if not self.alive:
                return
            wait_s = patience_s = KEEP_S

    def _next(self, requests: Requests, connection: Connection, wait_s: float, patience_s: float) -> Head | None:
        """The next request's head; None where there is none. TimeoutError when it does not come in time."""
        kept = wait_s == KEEP_S
        if kept:
            self._idle.add(connection)
        connection.settimeout(patience_s)
        connection.hurry(wait_s)
        try:
            return requests.next()
        finally:
            connection.hurry(None)
            connection.settimeout(STALL_S)
            self._shares.speaks(connection)
            if kept:
                self._idle.discard(connection)

    def _answer(self, head: Head, connection: Connection, environ: WSGIEnvironment) -> bool:
        """Call the application; whether the connection may serve another request."""
        if head.expects_continue:
            connection.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        if head.expects_body:
            environ['wsgi.input'] = Body(head.body, lambda: self._shares.speaks(connection))
        reply = Reply(head, connection, self._settings)
        if not self.alive:
            reply.force_close()
        try:
            body = self.wsgi(environ, reply.start_response)
            try:
                for piece in body:
                    reply.write(piece)
                    self._shares.speaks(connection)
                reply.close()
            finally:
                if hasattr(body, 'close'):
                    body.close()
        except OSError:
            raise
        except errors.ParseException as error:
            # A malformed body shows itself only while it is read.
            if not reply.headers_sent:
                refuse(connection, error)
            return False
        except Exception:
            # Begun and not ended: the guest must see a broken answer, not a short one.
            LOG.exception('The answer was cut')
            return False
        if head.unread:
            drain(connection)
            return False
        return not reply.should_close()


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
