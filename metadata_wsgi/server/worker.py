# SPDX-License-Identifier: Apache-2.0
"""The gunicorn worker of the metadata path: what it listens on, from its start to its end.

What it changes in gunicorn's gevent worker, and why:

- Connections are served by ``serving``, in greenlets of ``arrivals``.
- Beside the sockets that gunicorn opened it serves those of the keeper, each with the namespace it is in.
- A worker that stops closes kept connections as soon as they are idle, so a restart does not wait for
  namespace proxies that only keep a connection open. What is under way is finished.
"""

from __future__ import annotations

import _socket
import socket
import time
from typing import TYPE_CHECKING, Any

import gevent
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper
from gunicorn.workers.ggevent import GeventWorker

from metadata_wsgi import limits
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.worker_client import Subscription
from metadata_wsgi.net import listeners
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.server.acceptor import Acceptor, GreenletPool
from metadata_wsgi.server.connection_handler import ConnectionHandler
from metadata_wsgi.server.connection_limits import ConnectionLimits

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class MetadataWorker(GeventWorker):
    """Serves guests (TCP) or namespace proxies (a unix socket)."""

    guest_connections = limits.MAX_CONNECTIONS_PER_ADDRESS
    keeper: tuple[str, str] | None = None
    """Path of the keeper's ``listeners`` socket and the mode in which to follow it; set by the server."""

    any_destination = False
    """Whether to serve those too who asked another address; set by the server."""

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        listeners.raise_descriptor_limit()
        self._serving: ConnectionHandler | None = None
        self._crew = GreenletPool(self.worker_connections)
        self._doors: dict[str, Acceptor] = {}
        super().init_process()

    def run(self) -> None:
        """Called by gunicorn: serve until told to stop, then finish what is under way."""
        self._serving = ConnectionHandler(
            self.wsgi,
            FrozenSettings(self.cfg),
            ConnectionLimits(each=self.guest_connections, total=self.worker_connections - 1),
            any_destination=self.any_destination,
            is_stopping=lambda: not self.alive,
        )
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

    def _listen(self, key: str, listening: Any, namespace: environ_keys.Namespace | None) -> None:
        serving, environ = self._serving, self._environ(listening.getsockname(), namespace)
        assert serving is not None
        namespace_id = namespace and namespace.id

        def arrived(sock: _socket.socket, address: Any) -> None:
            serving.serve(sock, address, namespace_id, environ)

        self._doors[key] = Acceptor(listening, self._crew, arrived)
        self._doors[key].open()

    def _environ(self, server: Any, namespace: environ_keys.Namespace | None) -> WSGIEnvironment:
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
            environ[environ_keys.NAMESPACE] = namespace
        return environ

    def _follow(self) -> Subscription | None:
        if self.keeper is None:
            return None

        def serve(listener: Listener, handed: socket.socket) -> None:
            if self.alive:
                self._listen(listener.key, handed, environ_keys.Namespace(listener.router_id, listener.network_id))

        def leave(listener: Listener) -> None:
            door = self._doors.pop(listener.key, None)
            if door:
                door.close()

        path, mode = self.keeper
        following = Subscription(path, mode, on_add=serve, on_remove=leave, sleep=gevent.sleep)
        gevent.spawn(following.run)
        return following

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish what is under way, let go of what is only kept."""
        super().handle_exit(sig, frame)
        gevent.spawn(self._let_go)

    def _let_go(self) -> None:
        if self._serving is not None:
            self._serving.let_go()


class FrozenSettings:
    """gunicorn's settings as plain attributes, for what is read several times a request: a worker's do not change."""

    def __init__(self, cfg: Any) -> None:
        self.__dict__.update(
            {name: setting.get() for name, setting in cfg.settings.items() if not hasattr(type(cfg), name)}
        )
        self.__dict__['is_ssl'] = cfg.is_ssl
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)
