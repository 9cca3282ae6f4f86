# SPDX-License-Identifier: Apache-2.0
"""A running keeper, running workers and stored sockets, without root: a namespace is an address on loopback.

A namespace that is made again is another address, so every port that should be closed or open is seen in the kernel.
"""

import contextlib
import os
import random
import socket
import threading

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper.server import Keeper
from metadata_wsgi.keeper.worker_client import Subscription
from metadata_wsgi.net import listeners

ROUTERS = ['a', 'b']
PORTS = [9697, 9700]


class LoopbackNamespaces:
    """The SocketOpener of the registry. The ``generation`` of a namespace is a part of its address."""

    def __init__(self):
        self._net = random.SystemRandom().randrange(1, 255)
        self.generation = {}
        self.changes = 0

    def make(self, name):
        self.generation[name] = (self.changes + 1) % 250
        self.changes += 1

    def delete(self, name):
        del self.generation[name]
        self.changes += 1

    def address(self, name):
        return f'127.{self._net}.{self.generation[name]}.{1 + ROUTERS.index(name)}'

    def open(self, listener):
        if listener.namespace not in self.generation:
            raise NetnsError(f'there is no namespace {listener.namespace}')
        opened = listeners.bind_tcp(self.address(listener.namespace), listener.port)
        # After bind(), as bin/metadata-wsgi-haproxy does: bind() fails if the port is in use.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.setblocking(False)
        return opened

    def is_valid(self, listener, sock):
        return (
            listener.namespace in self.generation
            and sock.getsockname() == (self.address(listener.namespace), listener.port)
            and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        )

    def inode(self, sock):
        return os.fstat(sock.fileno()).st_ino

    def namespace_exists(self, listener):
        return listener.namespace in self.generation

    def open_ports(self):
        """(namespace, port) of every port in a present namespace that accepts connections."""
        found = set()
        for name in self.generation:
            for port in PORTS:
                with socket.socket() as probe:
                    if probe.connect_ex((self.address(name), port)) == 0:
                        found.add((name, port))
        return found


class StoredSockets:
    """As systemd's: copies of the sockets, each under one name only."""

    def __init__(self):
        self.stored = {}

    def add(self, listener, sock):
        inodes = [os.fstat(copy.fileno()).st_ino for copy in self.stored.values()]
        if listener not in self.stored and os.fstat(sock.fileno()).st_ino not in inodes:
            self.stored[listener] = sock.dup()

    def remove(self, listener):
        stored = self.stored.pop(listener, None)
        if stored is not None:
            stored.close()


class RunningKeeper:
    """A keeper whose event loop runs in a thread. ``kill`` closes all its descriptors and tells nobody."""

    def __init__(self, state_path, opener, store):
        self.keeper = Keeper(state_path, opener=opener, fdstore=store)
        if store is not None:
            self.keeper.restore([(listener, sock.dup()) for listener, sock in store.stored.items()])
        self._running = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while self._running:
            self.keeper.poll_once()

    def kill(self):
        self._running = False
        self._thread.join(60)
        self.keeper.close()


class Killed(Exception):
    """Ends a worker's thread."""


class RunningWorker:
    """A worker's subscription in a thread. ``served`` are the listeners on which it would accept, by key."""

    connections = {}  # noqa: RUF012 (by thread; to end a recv() in it)

    def __init__(self, state_path, mode):
        self.mode = mode
        self.served = {}
        self.may_connect = threading.Event()
        self.may_connect.set()
        self._killed = threading.Event()
        self._sockets = {}
        self._subscription = Subscription(
            os.path.join(state_path, 'listeners'), mode, on_add=self._add, on_remove=self._remove, sleep=self._pause
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with contextlib.suppress(Killed):
            self._subscription.run()

    def _add(self, listener, sock):
        assert listener.key not in self.served, 'added twice'
        self._sockets[listener.key] = sock
        self.served[listener.key] = listener

    def _remove(self, listener):
        del self.served[listener.key], self._sockets[listener.key]

    def _pause(self, _seconds):
        if self._killed.wait(0.005):
            raise Killed
        self.may_connect.wait()

    def kill(self):
        """As SIGKILL: the kernel closes all its descriptors."""
        self._killed.set()
        self.may_connect.set()
        while self._thread.is_alive():
            with contextlib.suppress(OSError, KeyError):
                self.connections[self._thread.ident].shutdown(socket.SHUT_RDWR)
            self._thread.join(0.01)
        self.connections.pop(self._thread.ident, None)
        for sock in self._sockets.values():
            sock.close()


class RecordedSocket(socket.socket):
    def connect(self, address):
        RunningWorker.connections[threading.get_ident()] = self
        super().connect(address)
