# SPDX-License-Identifier: Apache-2.0
"""What the keeper is told and tells: JSON objects, one to a packet of a unix SEQPACKET socket.

On ``<state_path>/keeper`` (root's), a request and its answer::

    {"verb": "attach", "listener": {...}}   ->  {"changed": true}, or false where it was there already; with a
                                                socket beside it that one is kept, and none is opened
    {"verb": "detach", "id": "..."}         ->  {"closed": true}: all of a router or network; false: there was none
    {"verb": "detach", "key": "..."}        ->  the same for one listener
    {"verb": "list"}, {..., "id": "..."}    ->  {"listeners": [{...}, ...]}, in several packets; the last one is empty
                                                and says who follows: {"workers": {"shared": 1, ...}}
                                                {"error": "a sentence", "again": true} where something was
                                                refused; again: the port may be free in a moment

On ``<state_path>/listeners`` (the workers'), after a worker's ``{"mode": "..."}``::

    worker -> keeper   {"holds": {...}} with the socket: what it still serves of an earlier keeper
                       {"holds": null}: that was all
    keeper -> worker   {"serve": {...}} with the socket, {"leave": "key"}, {"complete": true}

``attach`` is one packet and its answer, so a shell script can do it with any language's sockets.

Sockets travel beside the packet (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import array
import json
import os
import socket
from dataclasses import asdict, dataclass
from typing import Any

PACKET_BYTES = 1 << 16
SHARED, ONE_HOP = 'shared', 'one_hop'
MODES = (SHARED, ONE_HOP)


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that guests of one namespace connect to.

    ``mode`` says who serves it: the shared namespace proxy or, in one hop, the agent. Exactly one of the
    two ids is set. ``host`` is the address it is bound to, '' for all of the namespace.
    """

    mode: str
    namespace: str
    port: int
    router_id: str | None = None
    network_id: str | None = None
    host: str = ''

    @property
    def key(self) -> str:
        """What tells it from others: a router or network has one listener for each address."""
        return f'{self.id} {self.host}'.rstrip()

    @property
    def id(self) -> str:
        """The router's or network's."""
        return self.router_id or self.network_id or ''

    @classmethod
    def from_json(cls, fields: Any) -> Listener:
        """Check and take what came in a packet; ValueError says what is wrong with it."""
        if not isinstance(fields, dict):
            raise ValueError('listener: not an object')
        try:
            listener = cls(**fields)
        except TypeError as error:
            raise ValueError(f'listener: {error}') from None
        ids = ['' if said is None else said for said in (listener.router_id, listener.network_id)]
        texts = (listener.mode, listener.namespace, listener.host, *ids)
        if not all(isinstance(text, str) and '/' not in text and '\0' not in text for text in texts):
            raise ValueError('listener: every field but port is a name')
        if listener.mode not in MODES:
            raise ValueError(f'mode {listener.mode}: one of {", ".join(MODES)}')
        if bool(listener.router_id) == bool(listener.network_id):
            raise ValueError('exactly one of router_id and network_id')
        if type(listener.port) is not int or not 0 < listener.port < 65536:
            raise ValueError(f'port {listener.port}: not a TCP port')
        if not listener.namespace or listener.namespace in ('.', '..'):
            raise ValueError('namespace: a name is needed')
        return listener

    def to_json(self) -> dict[str, Any]:
        """As it goes into a packet."""
        return asdict(self)


def send(sock: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one packet, with a socket beside it if ``descriptor`` is given."""
    packet = json.dumps(message).encode()
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [descriptor]))] if descriptor is not None else []
    sock.sendmsg([packet], beside)


def receive(sock: socket.socket) -> tuple[dict[str, Any], int | None]:
    """Receive one packet and the descriptor beside it. EOFError at the end, ValueError for what is none."""
    packet, beside, flags, _ = sock.recvmsg(PACKET_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array('i')
    for level, kind, data in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    descriptor = descriptors[0] if descriptors else None
    try:
        if not packet:
            raise EOFError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) > 1:
            raise ValueError('a packet that is too long')
        message = _parsed(packet)
        if not isinstance(message, dict):
            raise ValueError('a packet that is no object')
    except BaseException:
        for number in descriptors:
            os.close(number)
        raise
    return message, descriptor


def _parsed(packet: bytes) -> Any:
    try:
        return json.loads(packet)
    except RecursionError:
        # Some thousand brackets from a worker must not end the one process that can open a namespace.
        raise ValueError('a packet of too many brackets') from None
