# SPDX-License-Identifier: Apache-2.0
"""The keeper as attach and detach see it: a router or network, not a listener.

A router has one listener, on every address of its namespace. A network has one at 169.254.169.254 and,
where IPv6 is wanted, one at fe80::a9fe:a9fe of its interface: in a DHCP namespace there are other addresses,
which are not for us (LP#1745618).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.netns.target import NETWORK, ROUTER, AttachTarget, KeeperEntry


class KeptSockets:
    """The sockets that the keeper in ``state_path`` has; a connection for each call, so threads may share this."""

    def __init__(self, state_path: str) -> None:
        self._state_path = state_path

    def attach(
        self, place: AttachTarget, mode: str, port: int, hosts: Sequence[str], taken: Sequence[socket.socket] = ()
    ) -> bool:
        """Have the place served in ``mode``, at ``hosts``; whether anything changed. Of ``taken`` what fits is kept."""
        wanted = [listener(place, mode, port, host) for host in hosts]
        with admin_client.connected(self._state_path) as keeper:
            changed = [keeper.attach(one, _at(one.host, taken)) for one in wanted]
            if place.kind == NETWORK:
                keys = {one.key for one in wanted}
                changed += [keeper.detach_one(one) for one in keeper.list(place.uuid)[0] if one.key not in keys]
        return any(changed)

    def close(self, place: AttachTarget, mode: str, port: int, host: str) -> None:
        """Have one of its sockets closed, e.g. because its interface was replaced by another of its name."""
        with admin_client.connected(self._state_path) as keeper:
            keeper.detach_one(listener(place, mode, port, host))

    def detach(self, place: AttachTarget) -> bool:
        """Have all of it closed; whether there was anything. Where there never was a keeper there is not."""
        if not self._was_there():
            return False
        with admin_client.connected(self._state_path) as keeper:
            return keeper.detach(place.uuid)

    def workers(self) -> dict[str, int]:
        """How many workers follow the keeper, by mode. Raises NetnsError where there is no keeper."""
        with admin_client.connected(self._state_path) as keeper:
            return keeper.list('')[1]

    def kept(self) -> list[KeeperEntry]:
        """All that is kept, one for each router or network; nothing where there never was a keeper."""
        if not self._was_there():
            return []
        with admin_client.connected(self._state_path) as keeper:
            listeners, workers = keeper.list()
        by_id: dict[str, list[Listener]] = {}
        for one in listeners:
            by_id.setdefault(one.id, []).append(one)
        return [
            KeeperEntry(
                AttachTarget(ROUTER if ones[0].router_id else NETWORK, id_, ones[0].namespace),
                ones[0].mode,
                ones[0].port,
                tuple(one.host for one in ones),
                workers.get(ones[0].mode, 0),
            )
            for id_, ones in by_id.items()
        ]

    def _was_there(self) -> bool:
        """A keeper leaves its socket's name behind, unless it ends with nothing to keep."""
        return os.path.exists(admin_client.path(self._state_path))


def listener(place: AttachTarget, mode: str, port: int, host: str) -> Listener:
    """What the keeper is told of one of a place's sockets."""
    router_id, network_id = (place.uuid, None) if place.kind == ROUTER else (None, place.uuid)
    return Listener(mode, place.namespace, port, router_id, network_id, host)


def _at(host: str, taken: Sequence[socket.socket]) -> socket.socket | None:
    # A zone's name means something in its namespace only: addresses are compared without it.
    wanted = (host.partition('%')[0],) if host else ('::', '0.0.0.0')  # noqa: S104 (what was bound, not what to bind)
    return next((one for one in taken if one.getsockname()[0].partition('%')[0] in wanted), None)
