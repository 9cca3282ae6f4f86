# SPDX-License-Identifier: Apache-2.0
"""What to ask Quantum, and which ports of an answer are guests. Pure: knows no HTTP.

Facts, tried against Neutron 29:

- Without ``network_id`` an address is every tenant's; so no question is asked for no networks.
- A filter that is repeated means "or"; ``fixed_ips=ip_address=<address>`` compares text, so IPv6 must be
  lower case and compressed; with a wrong key in the place of ``ip_address`` every port comes back. So
  each port of an answer is compared again here.
- 80 networks in one URL pass, 100 are refused with 414.
- A router's own ports and a DHCP server's have the addresses of a network too: guests are only those
  whose owner is Nova.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from metadata_wsgi.inventory.model import mac_in
from metadata_wsgi.net.addresses import normalize_ip
from metadata_wsgi.pipeline.environ_keys import Instance

Query = tuple[tuple[str, str], ...]
"""(name, value) pairs of a URL; a name may stand there repeatedly."""
Port = Mapping[str, Any]
"""A port as the API gives it."""

ROUTER_INTERFACES = (
    'network:router_interface',
    'network:router_interface_distributed',
    'network:ha_router_replicated_interface',
)
"""What a router's port to a network is owned by; the others are DVR's and HA routers' (bug 1353271)."""

GUESTS = ('compute:', 'baremetal:')
"""How the owner of a guest's port begins; what follows is the availability zone."""

FIELDS = (
    'id', 'device_id', 'device_owner', 'project_id', 'tenant_id', 'network_id', 'mac_address', 'fixed_ips',
    'created_at',
)  # fmt: skip
NETWORKS_AT_ONCE = 50


def networks_of(router_id: str) -> Query:
    """The question for a router's ports to its networks, of whatever kind the router is."""
    owners = tuple(('device_owner', owner) for owner in ROUTER_INTERFACES)
    return (('device_id', router_id), *owners, ('fields', 'network_id'))


def network_ids(ports: Iterable[Port]) -> list[str]:
    """The networks of ``ports``, each once: a dual-stack router has two ports on one network."""
    return list(dict.fromkeys(port['network_id'] for port in ports if port.get('network_id')))


def at(address: str, networks: Sequence[str]) -> Iterator[Query]:
    """The questions for the ports that have ``address`` on one of ``networks``: none for no networks.

    A link-local address that is made of a MAC is asked for by that: Quantum does not know it.
    """
    mac = mac_in(address)
    wanted = ('mac_address', mac) if mac else ('fixed_ips', f'ip_address={normalize_ip(address)}')
    fields = tuple(('fields', field) for field in FIELDS)
    for first in range(0, len(networks), NETWORKS_AT_ONCE):
        batch = tuple(('network_id', network) for network in networks[first : first + NETWORKS_AT_ONCE])
        yield (*batch, wanted, *fields)


def instances_at(address: str, networks: Collection[str], ports: Iterable[Port]) -> tuple[Instance, ...]:
    """The instances whose port is among ``ports`` and really has ``address`` on one of ``networks``.

    An instance that fits twice is given once; one instance id under two projects is two, since a tenant
    may write another's instance id on a port of its own (bug 1235450).
    """
    found: dict[tuple[str, str], Instance] = {}
    for port in ports:
        project_id = port.get('project_id') or port.get('tenant_id')
        if project_id and port.get('device_id') and port.get('network_id') in networks and _is_guest(port, address):
            instance = Instance(port['device_id'], project_id, port.get('id') or '', _created_at_s(port))
            found.setdefault((instance.instance_id, instance.project_id), instance)
    return tuple(found.values())


def _created_at_s(port: Port) -> float | None:
    """When the port was created; None where Quantum has no timestamps (Grizzly's), or none that we can read."""
    try:
        created = datetime.fromisoformat(port['created_at'])
    except (KeyError, TypeError, ValueError):
        return None
    return (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()


def _is_guest(port: Port, address: str) -> bool:
    if not (port.get('device_owner') or '').startswith(GUESTS):
        return False
    mac = mac_in(address)
    if mac:
        return str(port.get('mac_address')).lower() == mac
    return normalize_ip(address) in {_canonical(fixed['ip_address']) for fixed in port.get('fixed_ips') or ()}


def _canonical(text: str) -> str | None:
    try:
        return normalize_ip(text)
    except ValueError:
        return None
