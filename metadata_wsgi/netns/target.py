# SPDX-License-Identifier: Apache-2.0
"""Data types: a router or network that can be attached, its modes, and the keeper's entry for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

ROUTER, NETWORK = 'router', 'network'
PREFIXES = {ROUTER: 'qrouter-', NETWORK: 'qdhcp-'}
NETWORK_PORT = 80
"""Port of the proxy in a DHCP namespace. The proxy listens on the metadata address, so no redirect is needed."""

PROCESS, SHARED, ONE_HOP = 'process', 'shared', 'one_hop'
MODES = (PROCESS, SHARED, ONE_HOP)
"""By mode, the process that accepts connections: a proxy for this target alone, the shared proxy, or the agent."""


@dataclass(frozen=True, slots=True)
class AttachTarget:
    """A router or network. ``kind`` is ROUTER or NETWORK, ``uuid`` the id, ``namespace`` the name of the namespace."""

    kind: str
    uuid: str
    namespace: str

    @classmethod
    def of(cls, kind: str, uuid: str, namespace: str | None = None) -> AttachTarget:
        """The target in ``namespace``. By default the namespace has the name that Quantum's agents use."""
        return cls(kind, uuid, namespace or PREFIXES[kind] + uuid)


NO_WORKER = {
    SHARED: 'no worker serves the sockets of mode shared, requests wait: start quantum-ns-metadata-proxy --shared',
    ONE_HOP: 'no worker serves the sockets of mode one_hop, requests wait: '
    'start quantum-metadata-agent with metadata_one_hop = true',
}


@dataclass(frozen=True, slots=True)
class KeeperEntry:
    """The keeper's listening sockets of one target. ``hosts``: their addresses, '' for every address.

    ``workers`` is the number of workers that accept connections on these sockets.
    """

    target: AttachTarget
    mode: str
    port: int
    hosts: tuple[str, ...]
    workers: int


class KeeperState(Protocol):
    """The keeper's state. Implemented by :class:`metadata_wsgi.keeper.attachments_client.AttachmentsClient`.

    Both methods raise NetnsError if the keeper does not respond.
    """

    def entries(self) -> list[KeeperEntry]:
        """One entry for each router or network with registered sockets."""

    def workers(self) -> dict[str, int]:
        """The number of connected workers, by mode."""
