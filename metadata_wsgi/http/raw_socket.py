# SPDX-License-Identifier: Apache-2.0
"""A connected socket that uses gevent's event loop only when a call would block.

A gevent socket creates two watchers of the event loop before its first call. Watchers are seldom needed: most requests
have already arrived when the connection is accepted, and the response fits into the kernel's buffer. Without watchers a
new connection costs 15 microseconds less.

A watcher that was needed is kept for the next wait, because a keep-alive connection waits again and again. gevent's
``wait_read`` makes a watcher and a Timeout for each wait, and takes 7 microseconds; this wait takes 3.
"""

from __future__ import annotations

import _socket
import socket
import time
from collections.abc import Callable
from typing import Any

from gevent import socket as gevent_socket
from gevent.hub import get_hub, getcurrent

from metadata_wsgi import limits


def from_gevent_socket(sock: socket.socket) -> Any:
    """Convert a gevent socket to a RawSocket. A blocking or TLS socket is returned unchanged."""
    if type(sock) is not gevent_socket.socket:
        return sock
    family, kind, protocol = sock.family, sock.type, sock.proto
    return RawSocket(_socket.socket(family, kind, protocol, sock.detach()))


_READABLE, _WRITABLE = 1, 2
"""libev's EV_READ and EV_WRITE."""


def _noop() -> None:
    pass


class RawSocket:
    """A connected stream socket with a timeout for each call and a deadline for several calls together.

    The object owns ``sock``, a plain socket. Only one greenlet may use the object, except that other greenlets may call
    ``shutdown``. The methods are those of ``socket.socket`` and raise OSError. ``on_block`` is called before each wait
    for the peer.
    """

    __slots__ = ('_deadline_s', '_sock', '_timeout_s', '_watchers', 'family', 'on_block')

    def __init__(self, sock: _socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.on_block: Callable[[], None] = _noop
        self._timeout_s: float | None = None
        self._deadline_s: float | None = None
        self.family = sock.family
        # By event, _READABLE or _WRITABLE.
        self._watchers: dict[int, Any] = {}

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout of each ``recv`` and ``send``, which raise TimeoutError after it. None means no timeout."""
        self._timeout_s = seconds

    def set_deadline(self, seconds: float | None) -> None:
        """Set a deadline for all later calls, ``seconds`` from now. None removes the deadline."""
        self._deadline_s = None if seconds is None else time.monotonic() + seconds

    def recv(self, size: int) -> bytes:
        """Receive 1 to ``size`` bytes; b'' at the end of the connection."""
        while True:
            try:
                return self._sock.recv(size)
            except BlockingIOError:
                if self._timeout_s == 0 and self._deadline_s is None:
                    raise
                self._wait(_READABLE)

    def send(self, data: bytes) -> int:
        """Send as much of ``data`` as the kernel takes; returns the number of bytes."""
        while True:
            try:
                return self._sock.send(data)
            except BlockingIOError:
                self._wait(_WRITABLE)

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``. The timeout applies to each ``send``."""
        sent = self.send(data)
        while sent < len(data):
            sent += self.send(data[sent : sent + limits.SEND_BYTES])

    def peer_has_closed(self) -> bool:
        """Whether the peer of a unix connection has closed it, even if not all of its data has been received.

        False if the peer has only ended its sending direction. For TCP the result is unknown.
        """
        try:
            self._sock.send(b'')
        except OSError:
            return True
        return False

    def shutdown(self, how: int) -> None:
        """Shut down one direction (0, 1) or both (2); a greenlet that waits for the socket wakes up."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self.on_block = _noop  # breaks the reference cycle of a callback that refers to this object
        while self._watchers:
            self._watchers.popitem()[1].close()
        self._sock.close()

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        """Get an option: an int, or, if ``size`` is given, up to ``size`` bytes."""
        return self._sock.getsockopt(level, option, size) if size else self._sock.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option."""
        self._sock.setsockopt(level, option, value)

    def getsockname(self) -> Any:
        """Return the local address."""
        return self._sock.getsockname()

    def _wait(self, event: int) -> None:
        timeout_s = self._timeout_s
        if self._deadline_s is not None:
            remaining_s = max(0.0, self._deadline_s - time.monotonic())
            timeout_s = remaining_s if timeout_s is None else min(timeout_s, remaining_s)
        if timeout_s == 0:
            raise BlockingIOError if self._deadline_s is None else TimeoutError('timed out')
        self.on_block()
        hub, waiting = get_hub(), getcurrent()
        watcher = self._watchers.get(event)
        if watcher is None:
            watcher = self._watchers[event] = hub.loop.io(self._sock.fileno(), event)
        timer = None if timeout_s is None else hub.loop.timer(timeout_s)
        try:
            watcher.start(waiting.switch)
            if timer is not None:
                timer.start(waiting.throw, TimeoutError, 'timed out')
            hub.switch()
        finally:
            watcher.stop()
            if timer is not None:
                timer.close()
