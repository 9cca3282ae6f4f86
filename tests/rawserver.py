# SPDX-License-Identifier: Apache-2.0
"""A raw socket server that follows scripts, for responses that a real HTTP server would not send.

It listens on a unix socket or on loopback. Each connection gets the next of the server's scripts. When no script is
left, each further connection gets the last one. A script is a function of a ``Peer``: it reads requests and writes
bytes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable


class Peer:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, server: RawServer) -> None:
        self.sock = sock
        self.server = server
        self._received = b''

    def request(self) -> bytes:
        """Read and record one request (header and body by Content-Length); b'' if the client disconnected."""
        while b'\r\n\r\n' not in self._received:
            if not self._receive():
                return b''
        head, _, _ = self._received.partition(b'\r\n\r\n')
        lengths = [line.split(b':')[1] for line in head.split(b'\r\n') if line.lower().startswith(b'content-length:')]
        size = len(head) + 4 + (int(lengths[0]) if lengths else 0)
        while len(self._received) < size and self._receive():
            pass
        whole, self._received = self._received[:size], self._received[size:]
        self.server.requests.append(whole)
        return whole

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _receive(self) -> bool:
        piece = self.sock.recv(65536)
        self._received += piece
        return bool(piece)


Script = Callable[[Peer], None]


class RawServer:
    """Serves until ``close``. ``requests`` are the received requests. ``connections`` counts accepted connections."""

    def __init__(self, *scripts: Script, path: str | None = None) -> None:
        self._scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.stop = threading.Event()
        self._accepted: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(path or ('127.0.0.1', 0))
        if path:
            # Programs that root starts connect as another user.
            os.chmod(path, 0o666)
        self.listener.listen(64)
        self.port = 0 if path else self.listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                sock.settimeout(20)
                self._accepted.append(sock)
                script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
                self.connections += 1
                self._start(self._serve, sock, script)

    def _serve(self, sock: socket.socket, script: Script) -> None:
        with contextlib.closing(sock), contextlib.suppress(OSError):
            script(Peer(sock, self))

    def close(self) -> None:
        self.stop.set()
        for sock in (self.listener, *self._accepted):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join(25)


def responds_with(*answers: bytes) -> Script:
    """Send one of ``answers`` per request, then close the connection."""

    def script(peer: Peer) -> None:
        for answer in answers:
            if not peer.request():
                return
            peer.send(answer)

    return script


def always_responds_with(answer: bytes) -> Script:
    """Send ``answer`` for every request until the client closes the connection."""

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(answer)

    return script


def closes_at_once(peer: Peer) -> None:
    """Close the connection without reading."""


def closes_after_request(peer: Peer) -> None:
    peer.request()


def never_responds(peer: Peer) -> None:
    """Read the request and send nothing until the server closes."""
    peer.request()
    peer.server.stop.wait(20)
