# SPDX-License-Identifier: Apache-2.0
"""What an inventory says, as frozen records, and the two questions that are asked of it.

Rule 1: every address is canonical text (lower case, compressed, IPv4 for a v4-mapped one), every MAC
lower case with colons, so that equal means the same.
Rule 2: nothing here knows a file; whoever makes an :class:`Inventory` has checked that ids exist.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subnet:
    """A range of addresses on a network. ``dhcp``: the guest is told to ask DHCP and not its address."""

    cidr: str
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    dhcp: bool = False

    @property
    def version(self) -> int:
        """4 or 6."""
        return ipaddress.ip_network(self.cidr).version

    @property
    def netmask(self) -> str:
        """The mask written as an address, as network_data.json has it for both versions."""
        return str(ipaddress.ip_network(self.cidr).netmask)

    def __contains__(self, address: str) -> bool:
        return ipaddress.ip_address(address) in ipaddress.ip_network(self.cidr)


@dataclass(frozen=True, slots=True)
class Network:
    """A network: its addresses are its own, another network may use the same. ``mtu`` in bytes."""

    id: str
    name: str
    subnets: tuple[Subnet, ...] = ()
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """A router and the ids of the networks whose guests reach the metadata address through it."""

    id: str
    name: str
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """A port on a network. Without an instance it is a router's or a DHCP server's, and never a guest.

    ``created_at_s``: when it was created, in seconds since 1970, if the file says so.
    """

    id: str
    network: Network
    mac: str
    addresses: tuple[str, ...]
    device_owner: str
    instance_id: str | None = None
    project_id: str | None = None
    created_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """A guest and all it is told. ``vendor_data`` and ``vendor_data2`` are JSON texts of objects.

    ``public_keys`` and ``metadata`` are (name, value) pairs in the order of the file; ``ports`` likewise.
    """

    id: str
    project_id: str
    name: str
    hostname: str
    availability_zone: str
    instance_type: str
    image: str
    security_groups: tuple[str, ...] = ()
    public_keys: tuple[tuple[str, str], ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    user_data: bytes | None = None
    vendor_data: str = '{}'
    vendor_data2: str = '{}'
    ports: tuple[Port, ...] = ()


class Inventory:
    """Everything that a file says, indexed. Never changed after it is made, so threads may share it."""

    def __init__(
        self,
        *,
        routers: Iterable[Router] = (),
        networks: Iterable[Network] = (),
        ports: Iterable[Port] = (),
        instances: Iterable[Instance] = (),
    ) -> None:
        self.routers: Mapping[str, Router] = {router.id: router for router in routers}
        self.networks: Mapping[str, Network] = {network.id: network for network in networks}
        self.ports: Mapping[str, Port] = {port.id: port for port in ports}
        self.instances: Mapping[str, Instance] = {instance.id: instance for instance in instances}
        guests = [port for port in self.ports.values() if port.instance_id is not None]
        self._by_mac = {(port.network.id, port.mac): port for port in guests}
        self._by_address = {(port.network.id, address): port for port in guests for address in port.addresses}

    def guests_at(self, address: str, *, router_id: str | None = None, network_id: str | None = None) -> list[Port]:
        """The instances' ports that have ``address`` on the network, or on any network of the router.

        ``address`` is canonical text. A link-local one that is made of a MAC (RFC 4291, appendix A) is found by
        that too: nobody writes those down. An id that does not exist has no guests.
        """
        if router_id is not None:
            router = self.routers.get(router_id)
            networks = router.networks if router else ()
        else:
            networks = (network_id,) if network_id is not None else ()
        mac = mac_in(address) if address.startswith('fe80:') else None
        found = {}
        for network in networks:
            for port in (self._by_address.get((network, address)), self._by_mac.get((network, mac)) if mac else None):
                if port:
                    found[port.id] = port
        return list(found.values())


def mac_in(address: str) -> str | None:
    """The MAC from which an address of fe80::/64 was made, None where it was not (a privacy address, IPv4)."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    octets = parsed.packed
    if parsed.version == 4 or octets[:8] != b'\xfe\x80' + bytes(6) or octets[11:13] != b'\xff\xfe':
        return None
    # The universal/local bit is inverted in an interface identifier.
    return bytes((octets[8] ^ 2, *octets[9:11], *octets[13:])).hex(':')
