# SPDX-License-Identifier: Apache-2.0
"""A worker's subscription: receives listeners from the keeper, and sends them to a restarted keeper."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from metadata_wsgi import instruments
from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener

LOG = logging.getLogger(__name__)

RECONNECT_DELAY_S = 0.5


class Subscription:
    """Subscribes to the keeper at ``path``. Calls ``on_add`` and ``on_remove`` for each change.

    ``on_add`` gets the listener and its socket. This class closes the socket after ``on_remove``. Call ``run`` in its
    own thread or greenlet. ``sleep`` must suspend only this thread or greenlet. ``run`` returns only after ``stop``.
    """

    def __init__(
        self,
        path: str,
        mode: str,
        *,
        on_add: Callable[[Listener, socket.socket], None],
        on_remove: Callable[[Listener], None],
        sleep: Callable[[float], None],
    ) -> None:
        self._path = path
        self._mode = mode
        self._on_add = on_add
        self._on_remove = on_remove
        self._sleep = sleep
        self._listeners: dict[str, tuple[Listener, socket.socket]] = {}
        self._running = True

    def stop(self) -> None:
        """Make ``run`` return after the next packet or reconnection attempt."""
        self._running = False

    def run(self) -> None:
        """Receive changes. While the keeper is unavailable, keep the present listeners and try to reconnect."""
        logged = False
        while self._running:
            instruments.KEEPER_UP.set(0, self._mode)
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                    connection.connect(self._path)
                    logged = False
                    self._subscribe(connection)
            except (OSError, EOFError, ValueError) as error:
                if not logged:
                    LOG.warning('The keeper at %s is unavailable, present listeners stay in use: %s', self._path, error)
                logged = True
            self._sleep(RECONNECT_DELAY_S)

    def _subscribe(self, connection: socket.socket) -> None:
        uid = protocol.peer_uid(connection)
        if not protocol.is_root_or_own(uid, os.geteuid()):
            raise ValueError(f'the process that listens there has uid {uid}')
        protocol.send(connection, {protocol.MODE: self._mode})
        for listener, sock in self._listeners.values():
            protocol.send(connection, {protocol.HAVE: listener.to_json()}, sock.fileno())
        protocol.send(connection, {protocol.HAVE: None})
        instruments.KEEPER_UP.set(1, self._mode)
        confirmed: set[str] = set()
        synced = False
        while self._running:
            message, received = protocol.receive(connection)
            if protocol.ADD in message and received is not None:
                confirmed |= self._add(message[protocol.ADD], received)
                continue
            if received is not None:
                received.close()
            if protocol.REMOVE in message:
                self._remove(str(message[protocol.REMOVE]))
            elif protocol.SYNC_END in message and not synced:
                synced = True
                for key in set(self._listeners) - confirmed:
                    self._remove(key)

    def _add(self, fields: Any, received: socket.socket) -> set[str]:
        """Add the listener if it is new. Returns a set with its key; empty if this release cannot use the listener."""
        try:
            listener = Listener.from_json(fields, ignore_unknown=True)
        except ValueError as error:
            received.close()
            LOG.warning('A listener of the keeper at %s is not understood and not served: %s', self._path, error)
            return set()
        current = self._listeners.get(listener.key)
        if current and current[0] == listener:
            # A restarted keeper sends the same socket that this worker already has.
            received.close()
        else:
            if current:
                self._remove(listener.key)
            self._listeners[listener.key] = (listener, received)
            self._on_add(listener, received)
        return {listener.key}

    def _remove(self, key: str) -> None:
        current = self._listeners.pop(key, None)
        if current is not None:
            self._on_remove(current[0])
            current[1].close()
