# SPDX-License-Identifier: Apache-2.0
"""The gunicorn worker: listens, accepts and shuts down.

Differences to gunicorn's gevent worker:

- Connections are accepted by ``acceptor`` and handled by ``connection_handler``.
- In addition to gunicorn's listeners it serves those of the keeper, each with the namespace that it is in.
- A stopping worker closes idle keep-alive connections at once, so that a restart does not wait for namespace proxies.
  Requests in progress are finished.
"""

from __future__ import annotations

import _socket
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
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


@dataclass(frozen=True)
class WorkerOptions:
    """What the server sets for its workers; ``master.Server.worker_options``.

    ``keeper``: path of the keeper's ``listeners`` socket and the mode whose listeners to serve. ``any_destination``:
    serve connections that were not made to the metadata address too.
    """

    keeper: tuple[str, str] | None = None
    any_destination: bool = False


class MetadataWorker(GeventWorker):
    """Serves instances (TCP) or namespace proxies (a unix socket). Its application must be a ``master.Server``."""

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        listeners.raise_descriptor_limit()
        self.prepare()
        super().init_process()

    def prepare(self) -> None:
        """Make the state of an empty worker."""
        self._handler: ConnectionHandler | None = None
        self._stopping = Event()
        self._pool = GreenletPool(self.worker_connections, on_full=self._close_longest_idle)
        self._acceptors: dict[str, Acceptor] = {}

    def run(self) -> None:
        """Called by gunicorn: serve until a signal, then finish the requests in progress."""
        options: WorkerOptions = self.app.worker_options
        self._handler = ConnectionHandler(
            self.wsgi,
            FrozenSettings(self.cfg),
            ConnectionLimits(per_address=limits.MAX_CONNECTIONS_PER_ADDRESS, total=self.worker_connections - 1),
            any_destination=options.any_destination,
            is_stopping=lambda: not self.alive,
            has_waiting_connections=lambda: self._pool.has_waiting_connections,
        )
        for number, listener in enumerate(self.sockets):
            self._accept_on(f'#{number}', listener, None)
        following = self._follow(options.keeper)
        while self.alive:
            self.notify()
            self._stopping.wait(limits.WORKER_NOTIFY_S)
        if following:
            following.stop()
        for acceptor in self._acceptors.values():
            acceptor.close()
        self._close_idle()
        deadline_s = time.monotonic() + self.cfg.graceful_timeout
        while len(self._pool) and time.monotonic() < deadline_s:
            self.notify()
            gevent.sleep(0.05)

    def _accept_on(self, key: str, listener: Any, namespace: environ_keys.Namespace | None) -> None:
        handler, environ = self._handler, self._environ(listener.getsockname(), namespace)
        assert handler is not None
        namespace_id = namespace and namespace.id

        def handle(sock: _socket.socket, address: Any) -> None:
            handler.handle(sock, address, namespace_id, environ)

        self._acceptors[key] = Acceptor(listener, self._pool, handle)
        self._acceptors[key].start()

    def _environ(self, server: Any, namespace: environ_keys.Namespace | None) -> WSGIEnvironment:
        """The environ keys that all requests of the listener with the address ``server`` have in common."""
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

    def _follow(self, keeper: tuple[str, str] | None) -> Subscription | None:
        if keeper is None:
            return None

        def add_listener(listener: Listener, sock: socket.socket) -> None:
            if self.alive:
                self._accept_on(listener.key, sock, environ_keys.Namespace(listener.router_id, listener.network_id))

        def remove_listener(listener: Listener) -> None:
            acceptor = self._acceptors.pop(listener.key, None)
            if acceptor:
                acceptor.close()

        path, mode = keeper
        following = Subscription(path, mode, on_add=add_listener, on_remove=remove_listener, sleep=gevent.sleep)
        gevent.spawn(following.run)
        return following

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Graceful stop (SIGTERM): finish the requests in progress, close idle connections."""
        super().handle_exit(sig, frame)
        # Not here: this is a signal handler.
        gevent.spawn(self._stopping.set)

    def _close_longest_idle(self) -> None:
        if self._handler is not None:
            self._handler.close_longest_idle()

    def _close_idle(self) -> None:
        if self._handler is not None:
            self._handler.close_idle()


class FrozenSettings:
    """gunicorn's settings as plain attributes. The parser reads several for each request, and a worker's never change.

    gunicorn's own ``Config`` looks each one up in a dictionary in ``__getattr__``.
    """

    def __init__(self, cfg: Any) -> None:
        self.__dict__.update(
            {name: setting.get() for name, setting in cfg.settings.items() if not hasattr(type(cfg), name)}
        )
        self.__dict__['is_ssl'] = cfg.is_ssl
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)
