# SPDX-License-Identifier: Apache-2.0
"""A TLS socket with a timeout for a whole handshake, ``recv`` or ``send``.

The timeout of gevent's SSLSocket starts again with every received piece of a TLS record. So a peer that sends one byte
a second could delay a request beyond its deadline.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from metadata_wsgi.net.resolver import wait_ready

T = TypeVar('T')


class TlsSocket:
    """A TLS connection over ``sock``, which it owns. The methods are those of a socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str, timeout_s: float) -> None:
        """Do the handshake. If it fails, close ``sock`` and raise OSError (TimeoutError, ssl.SSLError)."""
        self._timeout_s: float | None = timeout_s
        try:
            sock.setblocking(False)
            self._sock = context.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        try:
            self._call(self._sock.do_handshake)
        except TimeoutError:
            self._sock.close()
            raise TimeoutError('the TLS handshake was not complete in time') from None
        except BaseException:
            self._sock.close()
            raise

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout of each later ``recv`` and ``send``. None: no timeout. 0: ssl.SSLWantReadError at once."""
        self._timeout_s = seconds

    def recv(self, size: int) -> bytes:
        """Receive 1 to ``size`` bytes; b'' at the end of the connection."""
        return self._call(lambda: self._sock.recv(size))

    def send(self, data: bytes) -> int:
        """Send the first bytes of ``data``; returns their number."""
        return self._call(lambda: self._sock.send(data))

    def close(self) -> None:
        """Close the connection, without a TLS close message."""
        self._sock.close()

    def _call(self, operation: Callable[[], T]) -> T:
        until_s = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            try:
                return operation()
            except ssl.SSLWantReadError:
                event = select.POLLIN
                if self._timeout_s == 0:
                    raise
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
                if self._timeout_s == 0:
                    raise
            wait_ready(self._sock, event, None if until_s is None else until_s - time.monotonic())
