# SPDX-License-Identifier: Apache-2.0
"""Makes the queries for ports and finds the instances in their responses. Pure functions, no HTTP.

Facts, tried with Neutron 29:

- Without ``network_id`` a query for an address matches the ports of all tenants. So this module makes no query without
  networks.
- A repeated filter means "or". ``fixed_ips=ip_address=<address>`` compares text, so an IPv6 address must be in lower
  case and compressed. If Neutron does not know a filter, it returns every port. So this module checks each port of a
  response again.
- 80 networks in one URL (about 4,000 characters) are accepted. 100 networks get 414.
- The ports of routers and DHCP servers also have addresses on a network. Only a port with the owner Nova or Ironic
  belongs to an instance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from metadata_wsgi.inventory.model import mac_in
from metadata_wsgi.net.addresses import normalize_ip
from metadata_wsgi.pipeline.environ_keys import Instance

Query = tuple[tuple[str, str], ...]
"""(name, value) pairs of a URL; a name may be repeated."""
Port = Mapping[str, Any]
"""A port in the form of Neutron's API."""

ROUTER_INTERFACE_OWNERS = (
    'network:router_interface',
    'network:router_interface_distributed',
    'network:ha_router_replicated_interface',
)
"""``device_owner`` of a router's port on a network. The last two are for DVR and HA routers (LP#1353271)."""

SERVICE_OWNERS = (*ROUTER_INTERFACE_OWNERS, 'network:dhcp', 'network:distributed')
"""``device_owner`` of the ports that Neutron makes for its own services on a network. OVN has network:distributed."""

INSTANCE_OWNERS = ('compute:', 'baremetal:')
"""Prefixes of the ``device_owner`` of an instance's port. The rest is the availability zone."""

FIELDS = (
    'id', 'device_id', 'device_owner', 'project_id', 'tenant_id', 'network_id', 'mac_address', 'fixed_ips',
    'created_at',
)  # fmt: skip
SERVICE_PORT_FIELDS = ('id', 'device_id', 'network_id', 'mac_address', 'fixed_ips')
MAX_NETWORKS_PER_QUERY = 50
MAX_QUERY_LENGTH = 2600
"""Largest number of characters of networks and addresses in one URL: enough for 50 networks and some addresses."""
INTERFACE_ID_LENGTH = 11
"""The L3 agent names a router's interface ``qr-`` and this many characters of its port's id."""

RouterNetwork = tuple[str, str]
"""An interface of a router and the id of its network."""


def router_filters(router_id: str) -> list[tuple[str, str]]:
    """The filters of a query for the ports of a router."""
    return [('device_id', router_id)]


def router_ports_query(router_ids: Iterable[str]) -> Query:
    """The query for the ports of routers on their networks, for every kind of router."""
    devices = tuple(one for router_id in router_ids for one in router_filters(router_id))
    owners = tuple(('device_owner', owner) for owner in ROUTER_INTERFACE_OWNERS)
    return (*devices, *owners, *(('fields', field) for field in SERVICE_PORT_FIELDS))


def service_ports_query(network_ids: Iterable[str]) -> Query:
    """The query for the ports of Neutron's own services on networks."""
    networks = tuple(('network_id', network_id) for network_id in network_ids)
    owners = tuple(('device_owner', owner) for owner in SERVICE_OWNERS)
    return (*networks, *owners, *(('fields', field) for field in SERVICE_PORT_FIELDS))


def router_networks(router_id: str, ports: Iterable[Port]) -> list[RouterNetwork]:
    """The interfaces and networks of a router. ``ports`` may also contain ports of other routers."""
    return [
        (f'qr-{(port.get("id") or "")[:INTERFACE_ID_LENGTH]}', port['network_id'])
        for port in ports
        if port.get('network_id') and port.get('device_id') == router_id
    ]


def networks_behind(router: Iterable[RouterNetwork], interface: str | None) -> list[str]:
    """The networks of a router, without duplicates: a dual-stack router has two ports on one network.

    With ``interface``, only the network of this interface. The list is empty for an unknown interface.
    """
    return list(dict.fromkeys(network for name, network in router if interface in (None, name)))


def any_port_query(network_id: str) -> Query:
    """The query for one port, of any owner, on a network."""
    return (('network_id', network_id), ('limit', '1'), ('fields', 'id'))


def address_filter(address: str) -> tuple[str, str]:
    """The filter of a query for the ports with ``address``.

    If a link-local address contains a MAC, the query is for the MAC, because Neutron does not store such an address.
    """
    mac = mac_in(address)
    return ('mac_address', mac) if mac else ('fixed_ips', f'ip_address={normalize_ip(address)}')


def reference_filter(port: Port, kind: str) -> tuple[str, str] | None:
    """The filter that selects ``port``, of the same ``kind`` as that of an address; None if it has no such value."""
    if kind == 'mac_address':
        return ('mac_address', port['mac_address']) if port.get('mac_address') else None
    addresses = [fixed['ip_address'] for fixed in port.get('fixed_ips') or () if fixed.get('ip_address')]
    return ('fixed_ips', f'ip_address={addresses[0]}') if addresses else None


def confirmation_query(filters: Iterable[tuple[str, str]], networks: Iterable[str]) -> Query:
    """The query for the ports that match one of ``filters`` on one of ``networks``, ports of services first.

    The name of a service's owner (``network:``) is greater than that of an instance's owner (``compute:``).
    """
    selected = (*(('network_id', network) for network in networks), *filters)
    fields = tuple(('fields', field) for field in FIELDS)
    return (*selected, ('sort_key', 'device_owner'), ('sort_dir', 'desc'), *fields)


def ports_queries(filters: Iterable[tuple[str, str]], networks: Sequence[str]) -> Iterator[Query]:
    """The queries for the ports that match one of ``filters`` on one of ``networks``. Without networks no query.

    All filters must be for addresses, or all for MACs: Neutron combines filters of different kinds with "and".
    """
    fields = tuple(('fields', field) for field in FIELDS)
    for first in range(0, len(networks), MAX_NETWORKS_PER_QUERY):
        batch = tuple(('network_id', network) for network in networks[first : first + MAX_NETWORKS_PER_QUERY])
        yield (*batch, *filters, *fields)


def matching_instances(address: str, networks: Collection[str], ports: Iterable[Port]) -> tuple[Instance, ...]:
    """The instances in ``ports`` that have ``address`` on one of ``networks``.

    An instance that matches twice is returned once. The same instance id in two projects counts as two instances: a
    tenant can give its own port the id of another tenant's instance (LP#1235450).
    """
    found: dict[tuple[str, str], Instance] = {}
    for port in ports:
        project_id = port.get('project_id') or port.get('tenant_id')
        if project_id and port.get('device_id') and port.get('network_id') in networks and _is_match(port, address):
            instance = Instance(port['device_id'], project_id, port.get('id') or '', _created_at_s(port))
            found.setdefault((instance.instance_id, instance.project_id), instance)
    return tuple(found.values())


def other_ports(address: str, networks: Collection[str], ports: Iterable[Port]) -> list[Port]:
    """The ports with ``address`` on one of ``networks`` that belong to no instance.

    For example: the port of a trunk's VLAN (``trunk:subport``), the port of a container (``kuryr:container``), or a
    port that Nova has not bound yet.
    """
    return [
        port
        for port in ports
        if port.get('network_id') in networks
        and _has_address(port, address)
        and not (
            port.get('device_id') and _belongs_to_instance(port) and (port.get('project_id') or port.get('tenant_id'))
        )
    ]


def _created_at_s(port: Port) -> float | None:
    """The creation time of the port, in seconds since 1970; None without a valid timestamp, as in Grizzly's API."""
    try:
        created = datetime.fromisoformat(port['created_at'])
    except (KeyError, TypeError, ValueError):
        return None
    return (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()


def _is_match(port: Port, address: str) -> bool:
    """Whether ``port`` belongs to an instance and has ``address``."""
    return _belongs_to_instance(port) and _has_address(port, address)


def _belongs_to_instance(port: Port) -> bool:
    return (port.get('device_owner') or '').startswith(INSTANCE_OWNERS)


def _has_address(port: Port, address: str) -> bool:
    mac = mac_in(address)
    if mac:
        return str(port.get('mac_address')).lower() == mac
    return normalize_ip(address) in {_normalize_or_none(fixed['ip_address']) for fixed in port.get('fixed_ips') or ()}


def _normalize_or_none(text: str) -> str | None:
    try:
        return normalize_ip(text)
    except ValueError:
        return None
