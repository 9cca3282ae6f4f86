# SPDX-License-Identifier: Apache-2.0
"""The records of an inventory, and the two queries on it.

Rule 1: every address is canonical text (lower case, compressed, IPv4 for a v4-mapped address), and every MAC is lower
case with colons. So they can be compared as strings.
Rule 2: this module does not read the file. The caller of :class:`Inventory` must have checked that all ids exist.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subnet:
    """A range of addresses on a network. With ``dhcp``, network_data.json has "use DHCP" instead of an address."""

    cidr: str
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    dhcp: bool = False

    @property
    def version(self) -> int:
        """The IP version: 4 or 6."""
        return ipaddress.ip_network(self.cidr).version

    @property
    def netmask(self) -> str:
        """The network mask in the notation of an address, which network_data.json uses for both IP versions."""
        return str(ipaddress.ip_network(self.cidr).netmask)

    def __contains__(self, address: str) -> bool:
        return ipaddress.ip_address(address) in ipaddress.ip_network(self.cidr)


@dataclass(frozen=True, slots=True)
class Network:
    """A network. Several networks may use the same addresses. ``mtu`` is in bytes."""

    id: str
    name: str
    subnets: tuple[Subnet, ...] = ()
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """A router and the ids of the networks whose instances reach the metadata address through it."""

    id: str
    name: str
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """A port on a network. A port without an instance belongs, for example, to a router or a DHCP server.

    ``created_at_s`` is the time of creation in seconds since 1970, None if the file does not have it.
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
    """An instance and its metadata. ``vendor_data`` and ``vendor_data2`` are JSON objects as text.

    ``public_keys`` and ``metadata`` are (name, value) pairs. They and ``ports`` have the order of the file.
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
    """All records of a file, indexed. Immutable, so threads may share it."""

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
        with_instance = [port for port in self.ports.values() if port.instance_id is not None]
        self._by_mac = {(port.network.id, port.mac): port for port in with_instance}
        self._by_address = {
            (port.network.id, address): port for port in self.ports.values() for address in port.addresses
        }

    def instance_ports(
        self,
        address: str,
        *,
        router_id: str | None = None,
        network_id: str | None = None,
        interface: str | None = None,
    ) -> list[Port]:
        """The ports of instances that have ``address`` on the network, or on any network of the router.

        ``address`` is canonical text. A link-local address that was made from a MAC (RFC 4291, appendix A) need not
        be in the file: its port is found by the MAC. If the router or network is unknown, there are no ports. With
        ``interface``, an interface of the router, only the network of this interface is searched.
        """
        mac = mac_in(address) if address.startswith('fe80:') else None
        found = {}
        for network in self._networks(router_id, network_id, interface):
            for port in (self._by_address.get((network, address)), self._by_mac.get((network, mac)) if mac else None):
                if port and port.instance_id is not None:
                    found[port.id] = port
        return list(found.values())

    def other_ports(
        self,
        address: str,
        *,
        router_id: str | None = None,
        network_id: str | None = None,
        interface: str | None = None,
    ) -> list[Port]:
        """The ports without an instance that have ``address``. They explain why no instance was found.

        The arguments are those of :meth:`instance_ports`.
        """
        found = (self._by_address.get((one, address)) for one in self._networks(router_id, network_id, interface))
        return [port for port in found if port and port.instance_id is None]

    def _networks(self, router_id: str | None, network_id: str | None, interface: str | None) -> tuple[str, ...]:
        if router_id is not None:
            router = self.routers.get(router_id)
            return self._networks_of(router, interface) if router else ()
        return (network_id,) if network_id is not None else ()

    def _networks_of(self, router: Router, interface: str | None) -> tuple[str, ...]:
        """The networks of the router. With ``interface``, only the network of this interface of the router."""
        # A router with one network has no other interface for instances.
        if interface is None or len(router.networks) == 1:
            return router.networks
        prefix = port_prefix_of(interface)
        found = {
            port.network.id
            for port in self.ports.values()
            if prefix and port.id.startswith(prefix) and port.network.id in router.networks
        }
        # Several networks are found only if the interface name has fewer than 11 characters of the port's id.
        return tuple(found) if len(found) == 1 else ()


def port_prefix_of(interface: str) -> str | None:
    """The first characters of the id of the router's port with this interface; None for other interfaces.

    An L3 agent names the interface ``qr-`` and the first 11 characters of the port's id.
    """
    prefix = interface.removeprefix('qr-')
    return prefix if prefix != interface and prefix else None


def mac_in(address: str) -> str | None:
    """The MAC from which an address in fe80::/64 was made; None for other addresses (random or IPv4)."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    packed = parsed.packed
    if parsed.version == 4 or packed[:8] != b'\xfe\x80' + bytes(6) or packed[11:13] != b'\xff\xfe':
        return None
    # The universal/local bit is inverted in an interface identifier.
    return bytes((packed[8] ^ 2, *packed[9:11], *packed[13:])).hex(':')
