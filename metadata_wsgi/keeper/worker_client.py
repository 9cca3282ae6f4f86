# SPDX-License-Identifier: Apache-2.0
"""A worker's side of the keeper: serve what it hands over, from now on and after its own restart."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener

LOG = logging.getLogger(__name__)

AGAIN_S = 0.5


class Following:
    """Follows the keeper at ``path``; ``serve`` and ``leave`` are called for what comes and goes.

    ``serve`` gets the listener and a socket that is its own to close; ``leave`` the listener. ``run`` is to
    be called in a thread or greenlet of its own, with the ``sleep`` of that kind, and returns only after ``stop``.
    """

    def __init__(
        self,
        path: str,
        mode: str,
        *,
        serve: Callable[[Listener, socket.socket], None],
        leave: Callable[[Listener], None],
        sleep: Callable[[float], None],
    ) -> None:
        self._path = path
        self._mode = mode
        self._serve = serve
        self._leave = leave
        self._sleep = sleep
        self._served: dict[str, tuple[Listener, socket.socket]] = {}
        self._running = True

    def stop(self) -> None:
        """End ``run`` at its next breath."""
        self._running = False

    def run(self) -> None:
        """Follow; a keeper that is away is waited for, and what is served stays served meanwhile."""
        said = False
        while self._running:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                    connection.connect(self._path)
                    said = False
                    self._follow(connection)
            except (OSError, EOFError, ValueError) as error:
                if not said:
                    LOG.warning('The keeper at %s is away, what is attached stays served: %s', self._path, error)
                said = True
            self._sleep(AGAIN_S)

    def _follow(self, connection: socket.socket) -> None:
        protocol.send(connection, {'mode': self._mode})
        for listener, held in self._served.values():
            protocol.send(connection, {'holds': listener.to_json()}, held.fileno())
        protocol.send(connection, {'holds': None})
        still_there: set[str] = set()
        complete = False
        while self._running:
            message, descriptor = protocol.receive(connection)
            if 'serve' in message and descriptor is not None:
                listener = Listener.from_json(message['serve'])
                still_there.add(listener.key)
                self._take(listener, descriptor)
            elif 'leave' in message:
                self._let_go(str(message['leave']))
            elif 'complete' in message and not complete:
                complete = True
                for key in set(self._served) - still_there:
                    self._let_go(key)

    def _take(self, listener: Listener, descriptor: int) -> None:
        there = self._served.get(listener.key)
        if there and there[0] == listener:
            # The keeper was restarted; ours is the same socket.
            os.close(descriptor)
            return
        if there:
            self._let_go(listener.key)
        handed = socket.socket(fileno=descriptor)
        self._served[listener.key] = (listener, handed)
        self._serve(listener, handed)

    def _let_go(self, key: str) -> None:
        there = self._served.pop(key, None)
        if there is not None:
            self._leave(there[0])
            there[1].close()
