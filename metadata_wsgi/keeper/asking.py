# SPDX-License-Identifier: Apache-2.0
"""Ask the keeper of this host: attach, detach, list."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metadata_wsgi.errors import PlumbingError
from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener

PATIENCE_S = 10.0


class KeeperClient:
    """A connection to the keeper whose sockets are in ``state_path``. PlumbingError when it refuses or is not there."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def attach(self, listener: Listener) -> bool:
        """Have ``listener`` opened and kept; False where it was there already."""
        return bool(self._ask({'verb': 'attach', 'listener': listener.to_json()})['opened'])

    def detach(self, key: str) -> bool:
        """Have the listener ``key`` closed; whether there was one."""
        return bool(self._ask({'verb': 'detach', 'key': key})['closed'])

    def list(self) -> list[Listener]:
        """All that is kept."""
        found: list[Listener] = []
        page = self._ask({'verb': 'list'})['listeners']
        while page:
            found += [Listener.from_json(fields) for fields in page]
            page = self._hear()['listeners']
        return found

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        protocol.send(self._connection, message)
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            answer, _ = protocol.receive(self._connection)
        except (EOFError, OSError, ValueError) as error:
            raise PlumbingError(f'the keeper gave no answer: {str(error) or type(error).__name__}') from error
        if 'error' in answer:
            raise PlumbingError(f'the keeper refused: {answer["error"]}')
        return answer


def path(state_path: str) -> str:
    """Where the keeper is asked."""
    return os.path.join(state_path, 'keeper')


def is_there(state_path: str) -> bool:
    """Whether a keeper runs on this host for ``state_path``."""
    try:
        with connected(state_path):
            return True
    except PlumbingError:
        return False


@contextmanager
def connected(state_path: str) -> Iterator[KeeperClient]:
    """A connection to the keeper."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(PATIENCE_S)
        try:
            connection.connect(path(state_path))
        except OSError as error:
            raise PlumbingError(
                f'no keeper answers at {path(state_path)} ({error.strerror}): start metadata-wsgi keeper, as root'
            ) from error
        yield KeeperClient(connection)
