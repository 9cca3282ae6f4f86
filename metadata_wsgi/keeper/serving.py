# SPDX-License-Identifier: Apache-2.0
"""The keeper's process: two unix sockets, one loop, no thread but the one that enters a namespace."""

from __future__ import annotations

import errno
import logging
import os
import resource
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any

from metadata_wsgi import sockets
from metadata_wsgi.errors import MetadataError, PlumbingError
from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.registry import Follower, Registry
from metadata_wsgi.plumbing import netns

LOG = logging.getLogger(__name__)

# The kernel's own limit was met for now: descriptors in flight, or the buffer of a worker that is busy.
LATER = frozenset({errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS})


class Keeper:
    """Serves ``<state_path>/keeper`` and ``<state_path>/listeners`` until ``stop``."""

    def __init__(self, state_path: str, *, user: str = '', group: str = '') -> None:
        raise_descriptor_limit()
        self._selector = selectors.DefaultSelector()
        self._registry: Registry[socket.socket] = Registry(open_listener)
        self._running = True
        paths_of = (('keeper', 0o600, '', '', self._asked), ('listeners', 0o660, user, group, self._followed))
        for name, mode, owner, group_, arrived in paths_of:
            listening = sockets.unix_listener(
                os.path.join(state_path, name), mode=mode, user=owner, group=group_, kind=socket.SOCK_SEQPACKET
            )
            listening.setblocking(False)
            self._selector.register(listening, selectors.EVENT_READ, self._accept(listening, arrived))

    def stop(self, *_: Any) -> None:
        """End ``run`` (a signal handler)."""
        self._running = False

    def run(self) -> None:
        """Serve until stopped. Nothing is closed then: the workers go on, and hand it to the next keeper."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        while self._running:
            for key, events in self._selector.select(1.0):
                try:
                    key.data(events)
                except (EOFError, OSError, ValueError) as error:
                    if not isinstance(error, EOFError):
                        LOG.warning('A connection was closed: %s', error)
                    self._forget(key.fileobj)

    def _accept(self, listening: socket.socket, arrived: Callable[[socket.socket], None]) -> Callable[[int], None]:
        def accept(_events: int) -> None:
            connection, _ = listening.accept()
            connection.setblocking(False)
            arrived(connection)

        return accept

    def _forget(self, connection: Any) -> None:
        self._selector.unregister(connection)
        connection.close()

    # -- what root asks

    def _asked(self, connection: socket.socket) -> None:
        def answer(_events: int) -> None:
            message, _ = protocol.receive(connection)
            connection.setblocking(True)
            for reply in self._reply(message):
                protocol.send(connection, reply)
            connection.setblocking(False)

        self._selector.register(connection, selectors.EVENT_READ, answer)

    def _reply(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            if message.get('verb') == 'attach':
                return [{'opened': self._registry.attach(Listener.from_json(message.get('listener')))}]
            if message.get('verb') == 'detach':
                return [{'closed': self._registry.detach(str(message.get('key')))}]
            if message.get('verb') == 'list':
                return _pages([listener.to_json() for listener in self._registry])
        except (MetadataError, ValueError) as error:
            return [{'error': str(error)}]
        return [{'error': 'one of the verbs attach, detach, list'}]

    # -- who follows

    def _followed(self, connection: socket.socket) -> None:
        follower: list[Follower] = []

        def hear_or_tell(events: int) -> None:
            if events & selectors.EVENT_READ:
                try:
                    self._hear(connection, follower)
                except BaseException:
                    for one in follower:
                        self._registry.unfollow(one)
                    raise
            self._tell(connection, follower)

        self._selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, hear_or_tell)

    def _hear(self, connection: socket.socket, follower: list[Follower]) -> None:
        try:
            message, descriptor = protocol.receive(connection)
        except BlockingIOError:
            return
        if 'mode' in message and not follower:
            if message['mode'] not in protocol.MODES:
                raise ValueError(f'mode {message["mode"]}')
            follower.append(Follower(message['mode']))
        elif follower and message.get('holds') is not None and descriptor is not None:
            listener = Listener.from_json(message['holds'])
            self._registry.adopt(listener, socket.socket(fileno=descriptor))
        elif follower and 'holds' in message:
            self._registry.follow(follower[0])
        else:
            raise ValueError('not what a worker says')

    def _tell(self, connection: socket.socket, follower: list[Follower]) -> None:
        waiting = follower[0].waiting if follower else None
        while waiting:
            message, kept = waiting[0]
            try:
                protocol.send(connection, message, kept.fileno() if kept is not None else None)  # type: ignore[attr-defined]
            except OSError as error:
                if error.errno not in LATER:
                    raise
                break
            waiting.popleft()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting or not follower else 0)
        self._selector.modify(connection, events, self._selector.get_key(connection).data)


def open_listener(listener: Listener) -> socket.socket:
    """Listen inside the namespace. PlumbingError when there is none of that name, or the port is taken."""
    if not netns.exists(listener.namespace):
        raise PlumbingError(f'there is no namespace {listener.namespace} on this host')
    opened = netns.run_in(
        listener.namespace, lambda: sockets.tcp_listener(listener.host, listener.port, patience_s=0.0)
    )
    opened.setblocking(False)
    return opened


def raise_descriptor_limit() -> None:
    """A thousand routers are more descriptors than a login shell's limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _pages(listeners: list[dict[str, Any]], size: int = 100) -> list[dict[str, Any]]:
    pages = [{'listeners': listeners[start : start + size]} for start in range(0, len(listeners), size)]
    return [*pages, {'listeners': []}]
