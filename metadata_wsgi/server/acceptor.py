# SPDX-License-Identifier: Apache-2.0
"""Who serves a new connection: one of a crew of greenlets that stay, each for one connection at a time.

gevent's ``StreamServer`` makes a greenlet for each connection, and CPython takes memory from the kernel for each new
greenlet and gives it back at its end. These wait for the next connection instead, as many as are needed and no more
than ``STAY`` when nobody is there; and a connection is served the moment it is accepted, before the next one is.
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

Serve = Callable[[_socket.socket, Any], None]


class GreenletPool:
    """At most ``limit`` greenlets, each serving a connection; its length is how many do."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy = 0
        self._idle: list[greenlet] = []
        self._refused: deque[Acceptor] = deque()

    def __len__(self) -> int:
        return self._busy

    def is_full(self, door: Acceptor) -> bool:
        """Whether nobody is left to serve; ``door`` is then opened again as soon as there is, when its turn comes."""
        if self._busy < self._limit:
            return False
        self._refused.append(door)
        return True

    def take(self, serve: Serve, sock: _socket.socket, address: Any) -> None:
        """Have ``serve`` called, now, until it waits for something. Called in gevent's loop."""
        member = self._idle.pop() if self._idle else greenlet(self._stay, get_hub())
        member.switch(serve, sock, address)

    def _stay(self, *work: Any) -> None:
        while True:
            self._busy += 1
            try:
                serve, sock, address = work
                serve(sock, address)
            except (Exception, gevent.Timeout):
                LOG.exception('A connection was not served to its end')
            finally:
                self._busy -= 1
                if self._refused:
                    get_hub().loop.run_callback(self._open_again)
            # What is kept here is kept until the next connection.
            del serve, sock, address, work
            if len(self._idle) >= limits.MAX_IDLE_GREENLETS:
                return
            self._idle.append(getcurrent())
            try:
                work = get_hub().switch()
            except BaseException:
                # A timeout that somebody started for the last connection and forgot.
                self._idle.remove(getcurrent())
                raise

    def _open_again(self) -> None:
        # One from each door: opened all at once, the loop would let one of them have every place.
        for _ in range(len(self._refused)):
            if self._busy >= self._limit:
                return
            self._refused.popleft().open_for_one()


class Acceptor:
    """A listening socket: whoever arrives there is served by the crew, from ``open`` to ``close``."""

    def __init__(self, listening: Any, crew: GreenletPool, serve: Serve) -> None:
        listening.setblocking(False)
        # gevent's sockets have the kernel's inside.
        self._listening: _socket.socket = getattr(listening, '_sock', listening)
        self._owner = listening
        self._crew = crew
        self._serve = serve
        self._watcher = get_hub().loop.io(listening.fileno(), 1)
        self._is_closed = False
        self._seldom = Throttle(limits.LOG_INTERVAL_S)

    def open(self) -> None:
        """Let in who waits, and who comes."""
        if not self._is_closed:
            self._watcher.start(self._arrive)

    def open_for_one(self) -> None:
        """As ``open``, but only one of those who wait comes in at once. Called in gevent's loop."""
        self.open()
        self._arrive(1)

    def close(self) -> None:
        """Let nobody in any more, and close the socket."""
        self._is_closed = True
        self._watcher.stop()
        self._watcher.close()
        self._owner.close()

    def _arrive(self, batch: int = limits.ACCEPT_BATCH) -> None:
        for _ in range(batch):
            if self._is_closed:
                return
            if self._crew.is_full(self):
                self._watcher.stop()
                return
            try:
                descriptor, address = self._listening._accept()  # type: ignore[attr-defined]  # as accept(), which makes an object more
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in TRANSIENT_ACCEPT_ERRORS:
                    self._rest(error)
                    return
                continue
            sock = _socket.socket(self._listening.family, self._listening.type, self._listening.proto, descriptor)
            self._crew.take(self._serve, sock, address)

    def _rest(self, error: OSError) -> None:
        """Out of descriptors or memory: the loop would spin."""
        self._watcher.stop()
        gevent.spawn(self._open_later, error)

    def _open_later(self, error: OSError) -> None:
        # Not in the loop: a log may have to wait.
        if self._seldom.allow():
            LOG.error('No connection can be accepted now: %s', error)
        gevent.sleep(limits.ACCEPT_ERROR_BACKOFF_S)
        self.open()
