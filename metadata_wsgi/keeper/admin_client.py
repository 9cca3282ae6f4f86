# SPDX-License-Identifier: Apache-2.0
"""Ask the keeper of this host: attach, detach, list."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener

PATIENCE_S = 10.0
TRIES, PAUSE_S = 25, 0.2


class KeeperClient:
    """A connection to the keeper. NetnsError when it refuses or is not there."""

    def __init__(self, connection: socket.socket, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._connection = connection
        self._sleep = sleep

    def attach(self, listener: Listener, taken: socket.socket | None = None) -> bool:
        """Have ``listener`` opened and kept, or ``taken`` kept as it; False where it was there already.

        A port that is in use is asked for again for a while: after a restart of the keeper by a worker that
        has not handed it back yet, else by a predecessor on its way out.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                message = {'verb': 'attach', 'listener': listener.to_json()}
                return bool(self._ask(message, taken.fileno() if taken else None)['changed'])
            except _Again:
                if not tries_left:
                    raise
                self._sleep(PAUSE_S)
        raise AssertionError

    def detach(self, id_: str) -> bool:
        """Have every listener of the router or network closed; whether there was one."""
        return bool(self._ask({'verb': 'detach', 'id': id_})['closed'])

    def detach_one(self, listener: Listener) -> bool:
        """Have one listener closed; whether it was there."""
        return bool(self._ask({'verb': 'detach', 'key': listener.key})['closed'])

    def list(self, id_: str | None = None) -> tuple[list[Listener], dict[str, int]]:
        """All that is kept, or what is of one id, and how many workers follow, by mode."""
        found: list[Listener] = []
        page = self._ask({'verb': 'list', 'id': id_})
        while page['listeners']:
            found += [Listener.from_json(fields) for fields in page['listeners']]
            page = self._hear()
        return found, page['workers']

    def _ask(self, message: dict[str, Any], descriptor: int | None = None) -> dict[str, Any]:
        try:
            protocol.send(self._connection, message, descriptor)
        except OSError as error:
            raise NetnsError(f'the keeper could not be asked: {error.strerror or error}') from error
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            answer, _ = protocol.receive(self._connection)
        except (EOFError, OSError, ValueError) as error:
            raise NetnsError(f'the keeper gave no answer: {str(error) or type(error).__name__}') from error
        if 'error' in answer:
            kind = _Again if answer.get('again') else NetnsError
            raise kind(f'the keeper refused: {answer["error"]}')
        return answer


class _Again(NetnsError):
    """Refused for now."""


def path(state_path: str) -> str:
    """Where the keeper is asked."""
    return os.path.join(state_path, 'keeper')


@contextmanager
def connected(state_path: str) -> Iterator[KeeperClient]:
    """A connection to the keeper."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(PATIENCE_S)
        try:
            connection.connect(path(state_path))
        except OSError as error:
            raise NetnsError(
                f'no keeper answers at {path(state_path)} ({error.strerror}): start metadata-wsgi keeper, as root'
            ) from error
        _, uid, _ = struct.unpack('iII', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if not may_keep(uid, os.geteuid()):
            raise NetnsError(f'who listens at {path(state_path)} is uid {uid}, and no keeper')
        yield KeeperClient(connection)


def may_keep(uid: int, own: int) -> bool:
    """Whether a keeper of that user is believed: in the directory of its socket others may make one of its name."""
    return uid in (0, own)
