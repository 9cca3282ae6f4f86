# SPDX-License-Identifier: Apache-2.0
"""The keeper's wire protocol: one JSON object in each packet of a unix SEQPACKET socket.

On ``<state_path>/keeper`` (root only), a request and its reply::

    {"verb": "attach", "listener": {...}}   ->  {"changed": true}; false if the same listener was already
                                                registered. If the packet has a listening socket, this socket is
                                                registered and no socket is opened; a former socket is closed
    {"verb": "detach", "id": "..."}         ->  {"closed": true}; all listeners of this router or network are closed;
                                                false if there were none. With "holder": N nothing is closed if the
                                                FIFO of this id exists and its inode is not N
    {"verb": "detach", "key": "..."}        ->  the same for one listener
    {"verb": "get", "key": "..."}           ->  {"listener": {...}}, with its socket; {"error": ...} if there is none
    {"verb": "list"}                        ->  {"listeners": [{...}, ...]}, in several packets; the last one has an
                                                empty list and the number of workers by mode:
                                                {"listeners": [], "workers": {"shared": 1, ...}}
    {"verb": "list", "id": "..."}           ->  the same for one router or network
    any request that fails                  ->  {"error": "a sentence"}. With "again": true the port was in use, so
                                                a retry may succeed

On ``<state_path>/listeners`` (workers), after a worker's first packet ``{"mode": "..."}``::

    worker -> keeper   {"holds": {...}} with the socket: a listener that the worker has from an earlier keeper
                       {"holds": null}: no further listener follows; the worker is now subscribed
    keeper -> worker   {"serve": {...}} with the socket: add this listener
                       {"leave": "key"}: remove the listener with this key
                       {"complete": true}: all listeners registered so far have been sent

``attach`` is one packet and one reply. So any program that can send a descriptor can register its own sockets.

Sockets are sent as ancillary data (SCM_RIGHTS, unix(7)), at most one in each packet.

The field names above are the wire format. During an upgrade a worker or client may have another release than the
keeper. So a new release may add fields, but existing fields keep their name and meaning. The keeper rejects an attach
with an unknown field in ``listener``. All other unknown fields are ignored. The names of some constants below differ
from the names of the fields.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

MAX_PACKET_BYTES = 1 << 16
MAX_NAME_CHARACTERS = 255
ANCILLARY_BYTES = socket.CMSG_SPACE(4)
"""For one descriptor."""
TRUNCATED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)

SHARED, ONE_HOP = 'shared', 'one_hop'
MODES = (SHARED, ONE_HOP)
SHARED_SOCKET = 'shared_proxy'
"""Name of the shared proxy's socket: in the state path, and in the LISTEN_FDNAMES that SIGUSR1 passes on.

The file stays when the shared proxy ends.
"""

VERB, ATTACH, DETACH, LIST, GET = 'verb', 'attach', 'detach', 'list', 'get'
"""In requests of root: the name of the field, and its values."""

MODE, HAVE = 'mode', 'holds'
"""Fields from worker to keeper."""

ADD, REMOVE, SYNC_END = 'serve', 'leave', 'complete'
"""Fields from keeper to worker."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket in a namespace.

    ``mode`` selects the workers that accept connections on the socket: those of the shared namespace proxy (``shared``)
    or of the agent (``one_hop``). Either ``router_id`` or ``network_id`` is set. ``host`` is the address that the
    socket is bound to, '' for every address of the namespace.
    """

    mode: str
    namespace: str
    port: int
    router_id: str | None = None
    network_id: str | None = None
    host: str = ''

    @property
    def key(self) -> str:
        """The id and the address. No two listeners of a host have the same key."""
        return f'{self.id} {self.host}'.rstrip()

    @property
    def id(self) -> str:
        """The id of the router or network."""
        return self.router_id or self.network_id or ''

    @classmethod
    def from_json(cls, fields: Any, *, ignore_unknown: bool = False) -> Listener:
        """Make a listener from the JSON object of a packet. Raises ValueError if a field is invalid.

        ``ignore_unknown``: ignore unknown fields, because the sender may have a later release with more fields.
        """
        if not isinstance(fields, dict):
            raise ValueError('listener: not an object')
        if ignore_unknown:
            fields = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}
        try:
            listener = cls(**fields)
        except TypeError as error:
            raise ValueError(f'listener: {error}') from None
        ids = ['' if value is None else value for value in (listener.router_id, listener.network_id)]
        texts = (listener.mode, listener.namespace, listener.host, *ids)
        if not all(isinstance(text, str) and '/' not in text and '\0' not in text for text in texts):
            raise ValueError('listener: every field except port must be a name')
        if any(len(text) > MAX_NAME_CHARACTERS for text in texts):
            raise ValueError(f'listener: a name has more than {MAX_NAME_CHARACTERS} characters')
        if listener.mode not in MODES:
            raise ValueError(f'mode {listener.mode}: must be one of {", ".join(MODES)}')
        if bool(listener.router_id) == bool(listener.network_id):
            raise ValueError('exactly one of router_id and network_id must be set')
        if type(listener.port) is not int or not 0 < listener.port < 65536:
            raise ValueError(f'port {listener.port}: not a TCP port')
        if not listener.namespace or listener.namespace in ('.', '..'):
            raise ValueError('namespace: a name is needed')
        return listener

    def to_json(self) -> dict[str, Any]:
        """The JSON object for a packet."""
        # asdict() takes ten times as long, because it copies the values.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def send(sock: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one packet, with ``descriptor`` if it is not None."""
    packet = json.dumps(message).encode()
    ancillary = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [descriptor]))] if descriptor is not None else []
    )
    sock.sendmsg([packet], ancillary)


def receive(connection: socket.socket) -> tuple[dict[str, Any], socket.socket | None]:
    """Receive one packet, and the socket in it, if there is one. The caller must close the socket.

    Raises EOFError at the end of the connection, and ValueError for an invalid packet. All descriptors in an invalid
    packet are closed. A packet with several descriptors, or with a descriptor that is not a socket, is invalid.
    """
    packet, ancillary, flags, _ = connection.recvmsg(MAX_PACKET_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array('i')
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    try:
        if not packet:
            raise EOFError
        if flags & TRUNCATED or len(descriptors) > 1:
            # MSG_CTRUNC is also set if this process may not open another descriptor (RLIMIT_NOFILE).
            raise ValueError('a packet is too long, or has more descriptors than can be received')
        message = _parse_json(packet)
        if not isinstance(message, dict):
            raise ValueError('a packet is not a JSON object')
        return message, _socket_of(descriptors[0]) if descriptors else None
    except BaseException:
        for number in descriptors:
            os.close(number)
        raise


def _socket_of(descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ValueError(f'a descriptor is not a socket: {error.strerror}') from None


def peer_uid(connection: socket.socket) -> int:
    """The uid that the peer's process had when it called connect() or listen(); unix(7)."""
    _, uid, _ = struct.unpack('iII', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def is_root_or_own(uid: int, own_uid: int) -> bool:
    """Whether the peer, a keeper or a client, is trusted: it runs as root or as the user of this process.

    The permissions of the socket file are not enough. With write access to its directory, a user can create another
    socket there.
    """
    return uid in (0, own_uid)


def _parse_json(packet: bytes) -> Any:
    try:
        return json.loads(packet)
    except RecursionError:
        # A worker may send thousands of nested brackets. They must not end the keeper.
        raise ValueError('a packet is nested too deeply') from None
