# SPDX-License-Identifier: Apache-2.0
"""Accepts connections on the listeners, and runs the handler of each connection in a greenlet of a bounded pool.

Differences from gevent's ``StreamServer``, which makes a new greenlet for each connection:

- A greenlet whose connection has ended waits for the next connection. At most ``limits.MAX_IDLE_GREENLETS`` greenlets
  wait. A new greenlet would be slower, because CPython gets the memory for its stack from the kernel.
- The handler of a connection starts in the I/O callback of the event loop, before the next connection is accepted.
  gevent would start it in the next iteration of the loop. Until its first wait the handler holds up the event loop.
- If the pool is full when a new connection arrives, the listener is paused, and ``on_full`` is called. The worker's
  ``on_full`` closes an idle connection. When greenlets are free, each paused listener in turn accepts one connection.
"""

from __future__ import annotations

import _socket
import errno
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from metadata_wsgi import limits
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

TRANSIENT_ACCEPT_ERRORS = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EINTR})

Handler = Callable[[_socket.socket, Any], None]
"""Handles one connection until its end. The arguments are the accepted socket and the client's address."""


class GreenletPool:
    """At most ``limit`` greenlets, each with one connection. ``len()`` is the number of connections in progress.

    ``on_full`` is called when a new connection finds the pool full.
    """

    def __init__(self, limit: int, on_full: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._on_full = on_full
        self._busy = 0
        self._idle: list[greenlet] = []
        self._paused_acceptors: deque[Acceptor] = deque()
        self._error_log = Throttle(limits.LOG_INTERVAL_S)

    def __len__(self) -> int:
        return self._busy

    @property
    def is_full(self) -> bool:
        """Whether all greenlets are in use, so that no further connection can be handled."""
        return self._busy >= self._limit

    @property
    def has_waiting_connections(self) -> bool:
        """Whether new connections wait for a greenlet, in the backlog of a paused listener."""
        return bool(self._paused_acceptors)

    def resume_when_free(self, acceptor: Acceptor) -> None:
        """Resume the paused ``acceptor`` when a greenlet is free. Paused acceptors are resumed in order."""
        self._paused_acceptors.append(acceptor)
        self._on_full()

    def spawn(self, handler: Handler, sock: _socket.socket, address: Any) -> None:
        """Start ``handler`` in a greenlet. Returns when the handler first waits or ends. Called in the event loop."""
        runner = self._idle.pop() if self._idle else greenlet(self._run, get_hub())
        runner.switch(handler, sock, address)

    def _run(self, *job: Any) -> None:
        while True:
            self._busy += 1
            try:
                handler, sock, address = job
                handler(sock, address)
            except (Exception, gevent.Timeout):
                level = logging.ERROR if self._error_log.allow() else logging.DEBUG
                LOG.log(level, 'Unexpected error; the connection was closed', exc_info=True)
            finally:
                self._busy -= 1
                if self._paused_acceptors:
                    get_hub().loop.run_callback(self._resume_paused)
            # Otherwise the local variables would keep their objects alive until the next connection.
            del handler, sock, address, job
            if len(self._idle) >= limits.MAX_IDLE_GREENLETS:
                return
            self._idle.append(getcurrent())
            try:
                job = get_hub().switch()
            except BaseException:
                # For example a gevent.Timeout that the application started and did not cancel.
                self._idle.remove(getcurrent())
                raise

    def _resume_paused(self) -> None:
        # One connection of each listener. If a listener could accept more, it could get all free greenlets.
        for _ in range(len(self._paused_acceptors)):
            if self.is_full:
                return
            self._paused_acceptors.popleft().resume()


class Acceptor:
    """Accepts the connections of one listener, from ``start`` to ``close``. They are handled in ``pool``."""

    def __init__(self, listener: Any, pool: GreenletPool, handler: Handler) -> None:
        listener.setblocking(False)
        # A gevent socket contains the plain socket.
        self._listener: _socket.socket = getattr(listener, '_sock', listener)
        self._owner = listener
        self._pool = pool
        self._handler = handler
        self._watcher = get_hub().loop.io(listener.fileno(), 1)
        self._is_closed = False
        self._error_log = Throttle(limits.LOG_INTERVAL_S)

    def start(self) -> None:
        """Accept the connections in the backlog and all later ones."""
        if not self._is_closed:
            self._watcher.start(self._accept_batch)

    def resume(self) -> None:
        """Start again after a pause, and accept one connection. Called in the event loop."""
        self.start()
        self._accept_batch(1)

    def close(self) -> None:
        """Accept no more, and close the listener. Connections in progress continue."""
        self._is_closed = True
        self._watcher.stop()
        self._watcher.close()
        self._owner.close()

    def _accept_batch(self, batch: int = limits.ACCEPT_BATCH) -> None:
        # Called when a connection waits.
        if self._pool.is_full and not self._is_closed:
            self._watcher.stop()
            self._pool.resume_when_free(self)
            return
        for _ in range(batch):
            if self._is_closed or self._pool.is_full:
                return
            try:
                # The private method returns a descriptor. accept() would also create a socket object of Python.
                descriptor, address = self._listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in TRANSIENT_ACCEPT_ERRORS:
                    self._back_off(error)
                    return
                continue
            sock = _socket.socket(self._listener.family, self._listener.type, self._listener.proto, descriptor)
            self._pool.spawn(self._handler, sock, address)

    def _back_off(self, error: OSError) -> None:
        """Pause after an error that lasts, such as EMFILE or ENOMEM.

        The listener stays readable, so without a pause the event loop would call accept() again at once, forever.
        """
        self._watcher.stop()
        gevent.spawn(self._restart_later, error)

    def _restart_later(self, error: OSError) -> None:
        # In a greenlet, because a log handler may block, and the event loop must not block.
        if self._error_log.allow():
            LOG.error('Connections cannot be accepted now: %s', error)
        gevent.sleep(limits.ACCEPT_ERROR_BACKOFF_S)
        self.start()
