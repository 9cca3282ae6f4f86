# SPDX-License-Identifier: Apache-2.0
"""The gunicorn worker: listens, accepts and shuts down.

Differences from gunicorn's gevent worker:

- ``acceptor`` accepts connections, and ``connection_handler`` handles them.
- In addition to gunicorn's listeners, a worker serves the keeper's listeners, each in the namespace of a router or
  network.
- A worker sends no heartbeat while its requests are stuck (``progress``).
- A stopping worker finishes the requests in progress. It closes idle keep-alive connections at once, so that a restart
  does not wait until the namespace proxies close theirs.
"""

from __future__ import annotations

import _socket
import faulthandler
import logging
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent import events
from gevent.event import Event
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper
from gunicorn.workers.ggevent import GeventWorker

from metadata_wsgi import instruments, limits
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.worker_client import Subscription
from metadata_wsgi.net import listeners
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.server.acceptor import Acceptor, GreenletPool
from metadata_wsgi.server.connection_handler import ConnectionHandler
from metadata_wsgi.server.connection_limits import ConnectionLimits
from metadata_wsgi.server.failure_recorder import FailureRecorder
from metadata_wsgi.server.progress import Progress
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

LOG = logging.getLogger(__name__)


class Stoppable(Protocol):
    """A part of the worker that runs beside the requests, for example the server of the metrics page."""

    def stop(self) -> object:
        """End this part."""


STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""The master blocks these signals while it forks a worker."""


@dataclass(frozen=True)
class WorkerOptions:
    """The options of a worker, from ``master.Server.worker_options``.

    ``keeper``: path of the keeper's socket for workers, and the mode of the listeners to serve; None without a
    keeper. ``namespace``: the namespace of gunicorn's listeners, None if it is unknown. ``any_destination``: also serve
    connections that were not made to the metadata address. ``program``: value of the label ``program`` of metrics.
    ``on_serve``: called with the application when the worker begins to serve. It returns a Stoppable, which the worker
    stops at its end, or None.
    """

    keeper: tuple[str, str] | None = None
    namespace: environ_keys.Namespace | None = None
    any_destination: bool = False
    program: str = 'agent'
    on_serve: Callable[[Any], Stoppable | None] = lambda app: None


class MetadataWorker(GeventWorker):
    """Serves instances (TCP) or namespace proxies (a unix socket). Its application must be a ``master.Server``."""

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        listeners.raise_descriptor_limit()
        self.prepare()
        super().init_process()

    def prepare(self) -> None:
        """Initialize the worker's state: no listeners, no connections."""
        self._handler: ConnectionHandler | None = None
        self._stopping = Event()
        self._pool = GreenletPool(self.worker_connections, on_full=self._close_longest_idle)
        self._acceptors: dict[str, Acceptor] = {}
        self._stuck_log = Throttle(limits.LOG_INTERVAL_S)
        # The kind and id of the router or network, by the key of the keeper's listener.
        self._namespaces: dict[str, tuple[str, str]] = {}
        self._attached_changed = True

    def patch(self) -> None:
        """Called by gunicorn: gevent replaces the blocking functions of the standard library.

        Without plug-ins: for each module that it patches, gevent would search the metadata of all installed packages
        for entry points. That takes 120 ms of CPU and 4 MB of memory in each worker, and finds nothing.
        """
        events.notify_and_call_entry_points = events.notify
        super().patch()

    def init_signals(self) -> None:
        """Called by gunicorn to install the worker's signal handlers. Then unblocks STOP_SIGNALS.

        The master sends SIGABRT to a worker that hangs. Then the stack is written to standard error. gunicorn's own
        handler would run only when the worker hangs no more.
        """
        super().init_signals()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        # If it was enabled, by PYTHONFAULTHANDLER, gunicorn has replaced its handler.
        faulthandler.disable()
        if sys.stderr is not None:
            faulthandler.enable()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def run(self) -> None:
        """Called by gunicorn. Serves until a signal, then finishes the requests in progress."""
        options: WorkerOptions = self.app.worker_options
        progress = Progress()
        failures = FailureRecorder(self.app.failure_memory)
        self._handler = ConnectionHandler(
            self.wsgi,
            FrozenSettings(self.cfg),
            ConnectionLimits(per_address=limits.MAX_CONNECTIONS_PER_ADDRESS, total=self.worker_connections - 1),
            any_destination=options.any_destination,
            is_stopping=lambda: not self.alive,
            has_waiting_connections=lambda: self._pool.has_waiting_connections,
            progress=progress,
            on_failure=failures.record,
        )
        for number, listener in enumerate(self.sockets):
            self._accept_on(f'#{number}', listener, options.namespace)
        subscription = self._subscribe(options.keeper)
        beside = options.on_serve(self.wsgi)
        instruments.WORKER_STARTS.add(options.program)
        instruments.WORKERS.set(1, options.program)
        instruments.MAX_CONNECTIONS.set(self.worker_connections, options.program)
        while self.alive:
            if progress.is_made():
                self.notify()
            elif self._stuck_log.allow():
                LOG.error(
                    'No heartbeat: %d requests are past their deadline, and none ends. The worker is ended after %d s',
                    len(progress),
                    limits.WORKER_TIMEOUT_S,
                )
            instruments.CONNECTIONS.set(len(self._pool), options.program)
            if options.keeper and self._attached_changed:
                self._report_attached(options.keeper[1])
            failures.publish()
            self._stopping.wait(limits.WORKER_NOTIFY_S)
        if subscription:
            subscription.stop()
        if beside:
            beside.stop()
        for acceptor in self._acceptors.values():
            acceptor.close()
        self._close_idle()
        deadline_s = time.monotonic() + self.cfg.graceful_timeout
        while len(self._pool) and time.monotonic() < deadline_s:
            self.notify()
            gevent.sleep(0.05)
        failures.publish()

    def _accept_on(self, key: str, listener: Any, namespace: environ_keys.Namespace | None) -> None:
        handler, environ = self._handler, self._environ(listener.getsockname(), namespace)
        assert handler is not None
        namespace_id = namespace and namespace.id

        def handle(sock: _socket.socket, address: Any) -> None:
            handler.handle(sock, address, namespace_id, environ)

        self._acceptors[key] = Acceptor(listener, self._pool, handle)
        self._acceptors[key].start()

    def _environ(self, server: Any, namespace: environ_keys.Namespace | None) -> WSGIEnvironment:
        """The environ keys that are the same for all requests of the listener with the address ``server``."""
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

    def _subscribe(self, keeper: tuple[str, str] | None) -> Subscription | None:
        if keeper is None:
            return None

        def add_listener(listener: Listener, sock: socket.socket) -> None:
            if self.alive:
                self._accept_on(listener.key, sock, environ_keys.Namespace(listener.router_id, listener.network_id))
                self._namespaces[listener.key] = ('router' if listener.router_id else 'network', listener.id)
                self._attached_changed = True

        def remove_listener(listener: Listener) -> None:
            acceptor = self._acceptors.pop(listener.key, None)
            if acceptor:
                acceptor.close()
            self._namespaces.pop(listener.key, None)
            self._attached_changed = True

        path, mode = keeper
        subscription = Subscription(path, mode, on_add=add_listener, on_remove=remove_listener, sleep=gevent.sleep)
        gevent.spawn(subscription.run)
        return subscription

    def _report_attached(self, mode: str) -> None:
        self._attached_changed = False
        kinds = Counter(kind for kind, _ in set(self._namespaces.values()))
        for kind in ('router', 'network'):
            instruments.ATTACHED.set(kinds[kind], mode, kind)
        instruments.LISTENERS.set(len(self._namespaces), mode)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called by gunicorn at SIGTERM. Wakes ``run``, which closes idle connections and finishes the requests."""
        super().handle_exit(sig, frame)
        # In a greenlet, because this is a signal handler.
        gevent.spawn(self._stopping.set)

    def _close_longest_idle(self) -> None:
        if self._handler is not None:
            self._handler.close_longest_idle()

    def _close_idle(self) -> None:
        if self._handler is not None:
            self._handler.close_idle()


class FrozenSettings:
    """gunicorn's settings as plain attributes. They never change in a worker.

    The parser reads several settings for each request. gunicorn's own ``Config`` is slower, because its ``__getattr__``
    looks each setting up in a dictionary.
    """

    def __init__(self, cfg: Any) -> None:
        self.__dict__.update(
            {name: setting.get() for name, setting in cfg.settings.items() if not hasattr(type(cfg), name)}
        )
        self.__dict__['is_ssl'] = cfg.is_ssl
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)
