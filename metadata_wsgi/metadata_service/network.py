# SPDX-License-Identifier: Apache-2.0
"""network_data.json: the interfaces of an instance, from its ports and their subnets. Pure functions.

If an address is in no subnet, or in a subnet with ``dhcp: true``, the file says "use DHCP" instead of the address.
Link-local IPv6 addresses are left out, because an instance makes its own link-local address.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from metadata_wsgi.inventory import Instance, Port, Subnet


def network_data(instance: Instance) -> dict[str, Any]:
    """The contents of network_data.json: links, networks and name servers, in the order of ports and addresses."""
    networks: list[dict[str, Any]] = []
    services: list[dict[str, str]] = []
    for port in instance.ports:
        for address in port.addresses:
            if ipaddress.ip_address(address).is_link_local:
                continue
            subnet = next((one for one in port.network.subnets if address in one), None)
            networks.append({'id': f'network{len(networks)}', **_network(port, address, subnet)})
            services.extend(one for one in _services(subnet) if one not in services)
    return {'links': [_link(port) for port in instance.ports], 'networks': networks, 'services': services}


def _link(port: Port) -> dict[str, Any]:
    # Without an mtu in the inventory the key is left out, because clients fail if it is null.
    mtu = {} if port.network.mtu is None else {'mtu': port.network.mtu}
    return {'id': _link_id(port), 'vif_id': port.id, 'type': 'phy', **mtu, 'ethernet_mac_address': port.mac}


def _link_id(port: Port) -> str:
    # The name of the tap device in OpenStack. It has 14 characters; an interface name has at most 15 (IFNAMSIZ).
    return f'tap{port.id[:11]}'


def _network(port: Port, address: str, subnet: Subnet | None) -> dict[str, Any]:
    version = ipaddress.ip_address(address).version
    if subnet is None or subnet.dhcp:
        return {'type': f'ipv{version}_dhcp', 'link': _link_id(port), 'network_id': port.network.id}
    return {
        'type': f'ipv{version}',
        'link': _link_id(port),
        'ip_address': address,
        'netmask': subnet.netmask,
        'routes': _routes(subnet),
        'network_id': port.network.id,
        'services': _services(subnet),
    }


def _routes(subnet: Subnet) -> list[dict[str, str]]:
    if subnet.gateway is None:
        return []
    default = '0.0.0.0' if subnet.version == 4 else '::'  # noqa: S104 - a destination, nothing listens there
    return [{'network': default, 'netmask': default, 'gateway': subnet.gateway}]


def _services(subnet: Subnet | None) -> list[dict[str, str]]:
    return [{'type': 'dns', 'address': address} for address in (subnet.dns if subnet else ())]
