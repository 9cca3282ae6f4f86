# SPDX-License-Identifier: Apache-2.0
"""The parts of the lab: ids, names and addresses, and the YAML file that describes it. This module does no I/O."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import yaml

STATE_PATH = '/run/metadata_wsgi-lab'
HOST_NAMESPACE = 'metadata-lab-host'
ADDRESS = '10.1.1.2'
GATEWAY = '10.1.1.1'
PREFIX_LENGTH = 24
CIDR = '10.1.1.0/24'

# The names in the lab never change, so that a new lab finds the remains of an earlier one.
_NAMES = uuid.UUID('a2e7c1de-6c0b-4f3e-9d55-16925416f9fe')


@dataclass(frozen=True, slots=True)
class Guest:
    """One instance and its tenant. ``routed``: it is behind a router; otherwise it is on an isolated network."""

    name: str
    tenant: str
    routed: bool
    mac: str

    @property
    def router_id(self) -> str | None:
        """Id of the instance's router; None on the isolated network."""
        return _id('router', self.name) if self.routed else None

    @property
    def network_id(self) -> str:
        """Id of the instance's network."""
        return _id('network', self.name)

    @property
    def instance_id(self) -> str:
        """Id of the instance."""
        return _id('instance', self.name)

    @property
    def project_id(self) -> str:
        """Id of the instance's tenant, without dashes, in Keystone's notation."""
        return _id('project', self.tenant).replace('-', '')

    @property
    def namespace(self) -> str:
        """The namespace that represents the instance."""
        return f'guest-{self.name}'

    @property
    def gateway_namespace(self) -> str:
        """The namespace of the instance's router or DHCP server, which serves the metadata address."""
        return f'qrouter-{self.router_id}' if self.routed else f'qdhcp-{self.network_id}'

    @property
    def gateway_interface(self) -> str:
        """The interface towards the instance in ``gateway_namespace``, named as by an L3 or DHCP agent."""
        return ('qr-' if self.routed else 'tap') + _id('port', self.name)[:11]


GUESTS = (
    Guest('red', 'red', routed=True, mac='fa:16:3e:00:00:01'),
    Guest('blue', 'blue', routed=True, mac='fa:16:3e:00:00:02'),
    Guest('alone', 'green', routed=False, mac='fa:16:3e:00:00:03'),
)


def namespaces() -> list[str]:
    """Every namespace of the lab."""
    return [HOST_NAMESPACE, *(name for guest in GUESTS for name in (guest.gateway_namespace, guest.namespace))]


def inventory() -> str:
    """The text of the YAML file that replaces Neutron and Nova."""
    return yaml.safe_dump(
        {
            'routers': [{'id': g.router_id, 'networks': [g.network_id]} for g in GUESTS if g.router_id],
            'networks': [
                {'id': g.network_id, 'subnets': [{'cidr': CIDR, **({'gateway': GATEWAY} if g.routed else {})}]}
                for g in GUESTS
            ],
            'ports': [
                {
                    'id': _id('port', g.name),
                    'network': g.network_id,
                    'mac': g.mac,
                    'addresses': [ADDRESS],
                    'instance': g.instance_id,
                    'project': g.project_id,
                }
                for g in GUESTS
            ],
            'instances': [
                {
                    'id': g.instance_id,
                    'project': g.project_id,
                    'name': f'vm-{g.name}',
                    'public_keys': {f'key-{g.tenant}': f'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{g.name} {g.tenant}@lab'},
                    'metadata': {'tenant': g.tenant},
                    'user_data': f'#cloud-config\n# for vm-{g.name}\n',
                }
                for g in GUESTS
            ],
        },
        sort_keys=False,
    )


def options(secret: str) -> str:
    """The text of the agent's configuration file."""
    return f"""\
[DEFAULT]
state_path = {STATE_PATH}
metadata_proxy_shared_secret = {secret}
directory = static
nova_metadata_host = 127.0.0.1
nova_metadata_port = 8775
metadata_workers = 1
# If there is no user metadata-wsgi, the namespace proxies run as nobody.
metadata_peer_users = nobody

[static]
inventory = {STATE_PATH}/inventory.yaml

[metadata_app]
inventory = {STATE_PATH}/inventory.yaml
password_dir = {STATE_PATH}/passwords
"""


def _id(kind: str, name: str) -> str:
    return str(uuid.uuid5(_NAMES, f'{kind} {name}'))
