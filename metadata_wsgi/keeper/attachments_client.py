# SPDX-License-Identifier: Apache-2.0
"""Client of the keeper for attach and detach: one call for each router or network, not for each listener.

A router has one listener, on every address of its namespace. A network has a listener on 169.254.169.254 and, if IPv6
is served, another one on fe80::a9fe:a9fe of its interface. The other addresses of a DHCP namespace must not be served
(LP#1745618).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence

from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.admin_client import KeeperClient
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.netns.target import NETWORK, ROUTER, AttachTarget, KeeperEntry


class AttachmentsClient:
    """Client of the keeper in ``state_path``. Each call opens a connection, so threads may share an instance.

    ``list_once``: the first ``attach`` requests the present listeners of all targets, and not only those of its own.
    For one command that attaches many targets.
    """

    def __init__(self, state_path: str, *, list_once: bool = False) -> None:
        self._state_path = state_path
        self._list_once = list_once
        self._lock = threading.Lock()
        self._listed: dict[str, list[Listener]] | None = None
        self._attached: set[str] = set()

    def attach(
        self, target: AttachTarget, mode: str, port: int, hosts: Sequence[str], taken: Sequence[socket.socket] = ()
    ) -> bool:
        """Register listeners on ``hosts`` in ``mode``. Return True if anything changed.

        ``taken`` are listening sockets of a former process. If one of them is bound to an address of ``hosts``, it is
        registered, and the keeper opens no socket for this address.
        """
        wanted = [listener(target, mode, port, host) for host in hosts]
        keys = {one.key for one in wanted}
        with admin_client.connect(self._state_path) as keeper:
            stale = [one for one in self._present(keeper, target.uuid) if one.key not in keys]
            # A router has one listener: on every address or every IPv4 address. The former listener blocks the port.
            in_the_way = [one for one in stale if target.kind == ROUTER and one.port == port]
            changed = [keeper.unregister(one) for one in in_the_way]
            changed += [keeper.register(one, _bound_to(one.host, taken)) for one in wanted]
            changed += [keeper.unregister(one) for one in stale if one not in in_the_way]
        return any(changed)

    def close(self, target: AttachTarget, mode: str, port: int, host: str) -> None:
        """Unregister one listener, for example after its interface was deleted and created again."""
        with admin_client.connect(self._state_path) as keeper:
            keeper.unregister(listener(target, mode, port, host))

    def detach(self, target: AttachTarget) -> bool:
        """Unregister all listeners of ``target``.

        Return False if there were none or if the keeper's socket file does not exist.
        """
        if not self._socket_exists():
            return False
        with admin_client.connect(self._state_path) as keeper:
            return keeper.unregister_all(target.uuid)

    def workers(self) -> dict[str, int]:
        """The number of subscribed workers by mode. Raises NetnsError if no keeper runs."""
        with admin_client.connect(self._state_path) as keeper:
            return keeper.list('')[1]

    def entries(self) -> list[KeeperEntry]:
        """One entry for each router or network with registered listeners. Empty without the keeper's socket file."""
        if not self._socket_exists():
            return []
        with admin_client.connect(self._state_path) as keeper:
            return _entries(*keeper.list())

    def entry(self, target: AttachTarget) -> KeeperEntry | None:
        """The registered listeners of ``target``; None if there are none or without the keeper's socket file."""
        if not self._socket_exists():
            return None
        with admin_client.connect(self._state_path) as keeper:
            return next(iter(_entries(*keeper.list(target.uuid))), None)

    def _present(self, keeper: KeeperClient, uuid: str) -> list[Listener]:
        """The registered listeners of the router or network."""
        with self._lock:
            if self._list_once and uuid not in self._attached:
                if self._listed is None:
                    listed: dict[str, list[Listener]] = {}
                    for one in keeper.list()[0]:
                        listed.setdefault(one.id, []).append(one)
                    self._listed = listed
                self._attached.add(uuid)
                return self._listed.get(uuid, [])
        # A second attach of the same target: its listeners are not those of the beginning.
        return keeper.list(uuid)[0]

    def _socket_exists(self) -> bool:
        """Whether the keeper's socket file exists. If not, no listener is registered.

        A keeper that ends with listeners does not remove its socket file.
        """
        return os.path.exists(admin_client.socket_path(self._state_path))


def _entries(listeners: Iterable[Listener], workers: Mapping[str, int]) -> list[KeeperEntry]:
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


def listener(target: AttachTarget, mode: str, port: int, host: str) -> Listener:
    """The Listener for one socket of a router or network."""
    router_id, network_id = (target.uuid, None) if target.kind == ROUTER else (None, target.uuid)
    return Listener(mode, target.namespace, port, router_id, network_id, host)


def _bound_to(host: str, sockets: Sequence[socket.socket]) -> socket.socket | None:
    # An interface name is valid in its namespace only, so addresses are compared without the zone.
    addresses = (host.partition('%')[0],) if host else ('::', '0.0.0.0')  # noqa: S104 (compared, not bound)
    return next((one for one in sockets if one.getsockname()[0].partition('%')[0] in addresses), None)
