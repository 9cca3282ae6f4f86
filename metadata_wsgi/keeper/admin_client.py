# SPDX-License-Identifier: Apache-2.0
"""Sends the requests attach, detach and list to the keeper of this host."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from metadata_wsgi import limits
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.net import listening_process
from metadata_wsgi.net.listening_process import ListeningProcess
from metadata_wsgi.netns import namespaces

REPLY_TIMEOUT_S = 10.0
PORT_IN_USE_TIMEOUT_S = 5.0
OTHER_RELEASE = 'it is of another release; restart it'


class KeeperClient:
    """A connection to the keeper. Every method raises NetnsError if the keeper refuses or does not reply."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        sleep: Callable[[float], None] = time.sleep,
        find_process: Callable[[Listener], ListeningProcess | None] | None = None,
    ) -> None:
        self._connection = connection
        self._sleep = sleep
        self._find_process = find_process or _find_process

    def register(self, listener: Listener, handed_over: socket.socket | None = None) -> bool:
        """Register ``listener``. Returns False if it was already registered.

        The keeper opens the socket, or takes ``handed_over`` if it is given. While the port is in use, the request is
        retried for ``PORT_IN_USE_TIMEOUT_S``. Usually a former proxy is about to end, or the keeper was restarted
        and a worker has not sent it the socket yet. If a program of another package listens on the port, the request
        is retried only for ``limits.FOREIGN_PORT_TIMEOUT_S``, and the error names that program.
        """
        message = {protocol.VERB: protocol.ATTACH, 'listener': listener.to_json()}
        waited_s, next_search_s = 0.0, limits.FOREIGN_PORT_TIMEOUT_S
        while True:
            try:
                return bool(self._request(message, 'changed', handed_over.fileno() if handed_over else None)['changed'])
            except _PortInUse:
                if waited_s >= min(PORT_IN_USE_TIMEOUT_S, next_search_s):
                    # The search reads the descriptors of every process, so it is not repeated at each attempt.
                    next_search_s += limits.FOREIGN_PORT_TIMEOUT_S
                    process = self._find_process(listener)
                    if process and (not process.is_own or waited_s >= PORT_IN_USE_TIMEOUT_S):
                        raise NetnsError(process.message(listener.port, listener.namespace)) from None
                if waited_s >= PORT_IN_USE_TIMEOUT_S:
                    raise
                self._sleep(limits.PORT_RETRY_INTERVAL_S)
                waited_s += limits.PORT_RETRY_INTERVAL_S

    def unregister_all(self, id_: str) -> bool:
        """Unregister and close every listener of the router or network. Returns whether there was one."""
        return bool(self._request({protocol.VERB: protocol.DETACH, 'id': id_}, 'closed')['closed'])

    def unregister(self, listener: Listener) -> bool:
        """Unregister and close one listener. Returns whether it was registered."""
        return bool(self._request({protocol.VERB: protocol.DETACH, 'key': listener.key}, 'closed')['closed'])

    def list(self, id_: str | None = None) -> tuple[list[Listener], dict[str, int]]:
        """The listeners, and the number of subscribed workers by mode. With ``id_``, only the listeners of this id."""
        found: list[Listener] = []
        page = self._request({protocol.VERB: protocol.LIST, 'id': id_}, 'listeners')
        try:
            while page['listeners']:
                found += [Listener.from_json(fields, ignore_unknown=True) for fields in page['listeners']]
                page = self._receive_reply('listeners')
            return found, {str(mode): int(count) for mode, count in page['workers'].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NetnsError(f'the reply of the keeper is not understood ({error}): {OTHER_RELEASE}') from error

    def _request(self, message: dict[str, Any], field: str, descriptor: int | None = None) -> dict[str, Any]:
        try:
            protocol.send(self._connection, message, descriptor)
        except OSError as error:
            raise NetnsError(f'the request could not be sent to the keeper: {error.strerror or error}') from error
        return self._receive_reply(field)

    def _receive_reply(self, field: str) -> dict[str, Any]:
        """Receive one reply. Raises NetnsError if the reply contains an error or has no ``field``."""
        try:
            reply, sock = protocol.receive(self._connection)
        except (EOFError, OSError, ValueError) as error:
            raise NetnsError(f'no reply from the keeper: {str(error) or type(error).__name__}') from error
        if sock is not None:
            sock.close()
        if 'error' in reply:
            kind = _PortInUse if reply.get('again') else NetnsError
            raise kind(f'the keeper refused: {reply["error"]}')
        if field not in reply:
            raise NetnsError(f'the reply of the keeper is not understood (no {field}): {OTHER_RELEASE}')
        return reply


class _PortInUse(NetnsError):
    """The keeper refused because the port is in use. A retry may succeed."""


def _find_process(listener: Listener) -> ListeningProcess | None:
    """The process that listens on the port; None if it is not found.

    The client searches, because the keeper's systemd unit hides other processes from the keeper.
    """
    try:
        return namespaces.run_in(listener.namespace, lambda: listening_process.find(listener.port))
    except (NetnsError, OSError):
        return None


def socket_path(state_path: str) -> str:
    """Path of the socket for root's requests."""
    return os.path.join(state_path, 'keeper')


@contextmanager
def connect(state_path: str) -> Iterator[KeeperClient]:
    """Connect to the keeper. Raises NetnsError if no keeper listens, or if the keeper's user is not trusted."""
    path = socket_path(state_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(REPLY_TIMEOUT_S)
        try:
            connection.connect(path)
        except OSError as error:
            raise NetnsError(
                f'no keeper listens at {path} ({error.strerror}): start metadata-wsgi keeper, as root'
            ) from error
        uid = protocol.peer_uid(connection)
        if not protocol.is_root_or_own(uid, os.geteuid()):
            raise NetnsError(f'the process that listens on {path} has uid {uid}: not a keeper')
        yield KeeperClient(connection)
