# SPDX-License-Identifier: Apache-2.0
"""What can be attached, and what the keeper has of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

ROUTER, NETWORK = 'router', 'network'
PREFIXES = {ROUTER: 'qrouter-', NETWORK: 'qdhcp-'}
NETWORK_PORT = 80
"""In a DHCP namespace the proxy itself is at the metadata address: there is nothing to redirect."""

PROCESS, SHARED, ONE_HOP = 'process', 'shared', 'one_hop'
MODES = (PROCESS, SHARED, ONE_HOP)
"""Who serves a place: a process of its own in the namespace, one for all namespaces, or the agent itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to attach: ``kind`` is ROUTER or NETWORK, ``uuid`` its id, ``namespace`` the one it has on this host."""

    kind: str
    uuid: str
    namespace: str

    @classmethod
    def of(cls, kind: str, uuid: str, namespace: str | None = None) -> Place:
        """The place of a router or network in the namespace that Quantum's agents name after it, or in another."""
        return cls(kind, uuid, namespace or PREFIXES[kind] + uuid)


NOBODY_SERVES = {
    SHARED: 'nobody serves what is kept in mode shared, guests wait: start quantum-ns-metadata-proxy --shared',
    ONE_HOP: 'nobody serves what is kept in mode one_hop, guests wait: '
    'start quantum-metadata-agent with metadata_one_hop = true',
}


@dataclass(frozen=True, slots=True)
class Kept:
    """What the keeper has of a place: sockets at ``hosts`` ('' is every address); how many ``workers`` serve it."""

    place: Place
    mode: str
    port: int
    hosts: tuple[str, ...]
    workers: int
