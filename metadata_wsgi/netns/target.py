# SPDX-License-Identifier: Apache-2.0
"""Routers and networks that can be attached, the modes to serve them, and the keeper's entries for them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

ROUTER, NETWORK = 'router', 'network'
PREFIXES = {ROUTER: 'qrouter-', NETWORK: 'qdhcp-'}
NETWORK_PORT = 80
"""In a DHCP namespace the proxy listens on the metadata address itself: nothing has to be redirected."""

PROCESS, SHARED, ONE_HOP = 'process', 'shared', 'one_hop'
MODES = (PROCESS, SHARED, ONE_HOP)
"""What serves a target: a process of its own in the namespace, one proxy for all namespaces, or the agent itself."""


@dataclass(frozen=True, slots=True)
class AttachTarget:
    """A router or network: ``kind`` is ROUTER or NETWORK, ``uuid`` its id, ``namespace`` its namespace on this host."""

    kind: str
    uuid: str
    namespace: str

    @classmethod
    def of(cls, kind: str, uuid: str, namespace: str | None = None) -> AttachTarget:
        """The target in ``namespace``, by default in the one that Quantum's agents name after the id."""
        return cls(kind, uuid, namespace or PREFIXES[kind] + uuid)


NO_WORKER = {
    SHARED: 'no worker serves the sockets of mode shared, requests wait: start quantum-ns-metadata-proxy --shared',
    ONE_HOP: 'no worker serves the sockets of mode one_hop, requests wait: '
    'start quantum-metadata-agent with metadata_one_hop = true',
}


@dataclass(frozen=True, slots=True)
class KeeperEntry:
    """The keeper's listening sockets of one target, at ``hosts`` ('' is every address), and how many ``workers`` accept
    on them."""

    target: AttachTarget
    mode: str
    port: int
    hosts: tuple[str, ...]
    workers: int


class KeeperState(Protocol):
    """The keeper's state; :class:`metadata_wsgi.keeper.attachments_client.AttachmentsClient` is the real one.

    Both methods raise NetnsError when the keeper does not respond.
    """

    def entries(self) -> list[KeeperEntry]:
        """All entries."""

    def workers(self) -> dict[str, int]:
        """The number of connected workers, by mode."""
