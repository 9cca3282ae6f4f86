# SPDX-License-Identifier: Apache-2.0
"""Fills the services with projects, networks, ports and instances, nearly all of them at 10.1.1.2.

======================  ========================================================================================
``a``, ``b``            two tenants, each a router and a network with the same addresses
``isolated``            a network without a router
``dual``                a router and a network with IPv4 and IPv6
``many``                a router with 200 networks; the guest is in the last one
``dvr``, ``ha``         routers whose ports have the device_owner of distributed and highly available routers
``first``, ``second``   two instances behind one router, without ports: a test gives them one address in turn
``ghost``               10.1.1.66 in a's network: a port whose instance does not exist in Nova
``claimed``             10.1.1.77 in b's network: a port that tenant b made with the device_id of a's instance
======================  ========================================================================================
"""

from __future__ import annotations

import base64
import itertools
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import requests

from tests.openstack.services import ADMIN_PASSWORD, REGION, Services

V4, V6 = '10.1.1.0/24', '2001:db8:1::/64'
ADDRESS, ADDRESS_V6 = '10.1.1.2', '2001:db8:1::2'
GHOST, CLAIMED = '10.1.1.66', '10.1.1.77'
NETWORKS_OF_ROUTER_MANY = 200
BATCH_SIZE = 50
INTERFACES = {
    'dvr': 'network:router_interface_distributed',
    'ha': 'network:ha_router_replicated_interface',
}
USERS = {'metadata': 'admin', 'service': 'service', 'reader': 'reader'}
"""Users of the project ``service``: name -> role."""


@dataclass(frozen=True)
class Guest:
    """An instance and its port. ``port_id`` is '' if it has no port yet."""

    name: str
    project_id: str
    network_id: str
    subnet_id: str
    router_id: str
    instance_id: str
    port_id: str
    mac: str
    user_data_base64: str
    public_key: str
    ec2_id: str = ''

    @property
    def hostname(self) -> str:
        """The name with Nova's default domain."""
        return f'{self.name}.novalocal'

    @property
    def user_data(self) -> bytes:
        """The user-data, which contains every byte value."""
        return base64.b64decode(self.user_data_base64)


@dataclass(frozen=True)
class Seed:
    """What tests need to know of the contents."""

    guests: Mapping[str, Guest]
    application_credential: Mapping[str, str]

    def __getitem__(self, name: str) -> Guest:
        return self.guests[name]

    def as_json(self) -> str:
        """For a file that the next run reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Seed:
        """From the text that ``as_json`` returned."""
        read = json.loads(text)
        return cls({name: Guest(**guest) for name, guest in read['guests'].items()}, read['application_credential'])


class Admin:
    """A client of Keystone and Neutron, as the administrator or another user."""

    def __init__(
        self, services: Services, user: str = 'admin', password: str = ADMIN_PASSWORD, project: str = 'admin'
    ) -> None:
        self._keystone, self._neutron = services.keystone, services.neutron + '/v2.0'
        self._session = requests.Session()
        self._session.trust_env = False
        domain = {'domain': {'id': 'default'}}
        response = self._call('POST', self._keystone + '/auth/tokens', {'auth': {
            'identity': {'methods': ['password'], 'password': {'user': {'name': user, 'password': password, **domain}}},
            'scope': {'project': {'name': project, **domain}},
        }})  # fmt: skip
        self._session.headers['X-Auth-Token'] = response.headers['X-Subject-Token']
        self.user_id: str = response.json()['token']['user']['id']

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def keystone(self, method: str, path: str, body: object = None) -> Any:
        """One request to Keystone's v3 API; the decoded body."""
        response = self._call(method, f'{self._keystone}/{path}', body)
        return response.json() if response.content else None

    def neutron(self, method: str, path: str, body: object = None) -> Any:
        """One request to Neutron's v2.0 API; the decoded body."""
        response = self._call(method, f'{self._neutron}/{path}', body)
        return response.json() if response.content else None

    def make(self, kind: str, **fields: object) -> dict[str, Any]:
        """Create a network, subnet, router or port; its attributes."""
        return self.neutron('POST', f'{kind}s', {kind: fields})[kind]

    def make_all(self, kind: str, wanted: Iterable[Mapping[str, object]]) -> list[dict[str, Any]]:
        """Create many in bulk requests."""
        made: list[dict[str, Any]] = []
        rest = iter(wanted)
        while batch := list(itertools.islice(rest, BATCH_SIZE)):
            made += self.neutron('POST', f'{kind}s', {f'{kind}s': batch})[f'{kind}s']
        return made

    def make_in_keystone(self, kind: str, **fields: object) -> str:
        """Create a project, user, service or endpoint; its id."""
        made: str = self.keystone('POST', f'{kind}s', {kind: fields})[kind]['id']
        return made

    def _call(self, method: str, url: str, body: object = None) -> requests.Response:
        response = self._session.request(method, url, json=body, timeout=120)
        if not response.ok:
            raise RuntimeError(f'{method} {url} returned {response.status_code}: {response.text}')
        return response


def seed(services: Services) -> Seed:
    """Fill the three services, which run and are empty."""
    admin = Admin(services)
    credential = _make_users(admin, services)
    guests = {name: _make_guest(admin, name) for name in ('a', 'b', 'isolated', 'dual', 'many', *INTERFACES, 'first')}
    there = guests['first']
    guests['second'] = _guest('second', there.project_id, there.network_id, there.subnet_id, there.router_id)
    _make_ghost(admin, guests['a'])
    _make_claimed(services, guests['b'], guests['a'])
    rows = [{**asdict(guest), 'addresses': _addresses(guest)} for guest in guests.values()]
    script, conf = Path(__file__).with_name('nova_rows.py'), services.top / 'nova' / 'nova.conf'
    ec2_ids = json.loads(services.run('python', str(script), str(conf), stdin=json.dumps(rows)))
    known = zip(guests.items(), ec2_ids, strict=True)
    return Seed({name: replace(guest, ec2_id=ec2_id) for (name, guest), ec2_id in known}, credential)


def make_port(admin: Admin, guest: Guest) -> str:
    """Create a port at ADDRESS for ``guest``; its id."""
    port = admin.make(
        'port', project_id=guest.project_id, network_id=guest.network_id, device_id=guest.instance_id,
        device_owner='compute:nova', mac_address=guest.mac or None,
        fixed_ips=[{'subnet_id': guest.subnet_id, 'ip_address': ADDRESS}],
    )  # fmt: skip
    made: str = port['id']
    return made


def _make_users(admin: Admin, services: Services) -> dict[str, str]:
    """Create users, catalogue and an application credential. Nothing listens at the endpoints of RegionTwo."""
    admin.keystone('POST', 'regions', {'region': {'id': 'RegionTwo'}})
    for region, url in (('RegionTwo', 'http://127.0.0.1:9'), (REGION, services.neutron)):
        service = admin.make_in_keystone('service', type='network', name=f'neutron-{region}')
        for interface in ('public', 'internal', 'admin'):
            admin.make_in_keystone('endpoint', service_id=service, interface=interface, region_id=region, url=url)
    roles = {role['name']: role['id'] for role in admin.keystone('GET', 'roles')['roles']}
    project = admin.make_in_keystone('project', name='service', domain_id='default')
    for name, role in USERS.items():
        _make_user(admin, name, project, roles[role])
    _make_user(admin, 'b', admin.make_in_keystone('project', name='tenant-b', domain_id='default'), roles['member'])
    user = Admin(services, 'service', 'password of service', 'service')
    made = user.keystone('POST', f'users/{user.user_id}/application_credentials', {
        'application_credential': {'name': 'metadata agent', 'roles': [{'name': 'service'}]}
    })['application_credential']  # fmt: skip
    user.close()
    return {'id': made['id'], 'secret': made['secret']}


def _make_user(admin: Admin, name: str, project_id: str, role_id: str) -> None:
    user = admin.make_in_keystone('user', name=name, password=f'password of {name}', domain_id='default')
    admin.keystone('PUT', f'projects/{project_id}/users/{user}/roles/{role_id}')


def _make_guest(admin: Admin, name: str) -> Guest:
    found = admin.keystone('GET', f'projects?name=tenant-{name}')['projects']
    project = found[0]['id'] if found else admin.make_in_keystone('project', name=f'tenant-{name}', domain_id='default')
    router = '' if name == 'isolated' else admin.make('router', name=name, project_id=project)['id']
    networks = _make_networks(admin, name, project, router)
    network, subnets = networks[-1]
    guest = _guest(name, project, network, subnets[0], router)
    if name == 'first':
        return guest
    addresses = [{'subnet_id': subnets[0], 'ip_address': ADDRESS}]
    addresses += [{'subnet_id': subnet, 'ip_address': ADDRESS_V6} for subnet in subnets[1:]]
    port = admin.make(
        'port', project_id=project, network_id=network, device_id=guest.instance_id, device_owner='compute:nova',
        fixed_ips=addresses,
    )  # fmt: skip
    return replace(guest, port_id=port['id'], mac=port['mac_address'])


def _make_networks(admin: Admin, name: str, project: str, router: str) -> list[tuple[str, list[str]]]:
    """Create networks connected to the router: (network id, ids of its subnets)."""
    count = NETWORKS_OF_ROUTER_MANY if name == 'many' else 1
    made = admin.make_all('network', ({'name': f'{name}-{i}', 'project_id': project} for i in range(count)))
    networks = [network['id'] for network in made]
    cidrs = [*(f'10.2.{i}.0/24' for i in range(count - 1)), V4]
    subnets = admin.make_all('subnet', (
        {'network_id': network, 'project_id': project, 'ip_version': 4, 'cidr': cidr, 'enable_dhcp': False,
         **({} if router else {'gateway_ip': None})}
        for network, cidr in zip(networks, cidrs, strict=True)
    ))  # fmt: skip
    if name == 'dual':
        subnets += admin.make_all('subnet', [{
            'network_id': networks[0], 'project_id': project, 'ip_version': 6, 'cidr': V6,
            'ipv6_ra_mode': 'dhcpv6-stateful', 'ipv6_address_mode': 'dhcpv6-stateful',
        }])  # fmt: skip
    if router and count == 1 and name not in INTERFACES:
        for subnet in subnets:
            admin.neutron('PUT', f'routers/{router}/add_router_interface', {'subnet_id': subnet['id']})
    elif router:
        # add_router_interface needs agents for these routers, and a request for each interface; create ports instead.
        owner = INTERFACES.get(name, 'network:router_interface')
        admin.make_all('port', (
            {'network_id': subnet['network_id'], 'project_id': project, 'device_id': router, 'device_owner': owner,
             'fixed_ips': [{'subnet_id': subnet['id'], 'ip_address': subnet['gateway_ip']}]}
            for subnet in subnets
        ))  # fmt: skip
    return [(network, [s['id'] for s in subnets if s['network_id'] == network]) for network in networks]


def _make_ghost(admin: Admin, guest: Guest) -> None:
    admin.make(
        'port', project_id=guest.project_id, network_id=guest.network_id, device_id=str(uuid.uuid4()),
        device_owner='compute:nova', fixed_ips=[{'subnet_id': guest.subnet_id, 'ip_address': GHOST}],
    )  # fmt: skip


def _make_claimed(services: Services, claimant: Guest, victim: Guest) -> None:
    """The tenant itself creates the port; Neutron permits that (bug 1235450)."""
    tenant = Admin(services, 'b', 'password of b', 'tenant-b')
    tenant.make(
        'port', network_id=claimant.network_id, device_id=victim.instance_id, device_owner='compute:nova',
        fixed_ips=[{'subnet_id': claimant.subnet_id, 'ip_address': CLAIMED}],
    )  # fmt: skip
    tenant.close()


def _guest(name: str, project: str, network: str, subnet: str, router: str) -> Guest:
    data = f'#cloud-config\n# for {name}\n'.encode() + bytes(range(256))
    return Guest(
        name, project, network, subnet, router, instance_id=str(uuid.uuid4()), port_id='',
        mac='', user_data_base64=base64.b64encode(data).decode(), public_key=f'ssh-ed25519 AAAA{name} {name}',
    )  # fmt: skip


def _addresses(guest: Guest) -> list[tuple[str, str]]:
    return [(V4, ADDRESS), *([(V6, ADDRESS_V6)] if guest.name == 'dual' else [])]
