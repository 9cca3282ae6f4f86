# SPDX-License-Identifier: Apache-2.0
"""The namespaces: routers whose networks all use 10.1.1.0/24, the instances behind each, and the services.

::

    [guests-N] 10.1.1.2 .. --- qr-N 10.1.1.1 [qrouter-<id>]        [host] 192.0.2.1 --- 192.0.2.2 [services]

The instances of a router share a namespace, in which each has an address. An instance has the same address as those
behind the other routers, so a response that was meant for another router's instance is noticed.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from metadata_wsgi.netns import namespaces
from tests.clients.fake_openstack import port

HOST, SERVICES = '192.0.2.1', '192.0.2.2'
SERVICES_NAMESPACE, SERVICES_LINK = 'services', 'to-services'
_IDS = uuid.UUID('5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0000')


def ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(['ip', *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Client:
    """An instance: where it is and what it must get."""

    number: int
    router_number: int
    address: str
    instance_id: str
    project_id: str

    @property
    def namespace(self) -> str:
        """The namespace that it shares with the other instances of its router."""
        return f'guests-{self.router_number}'


@dataclass(frozen=True)
class Router:
    """A router with the instances behind it."""

    number: int
    clients: tuple[Client, ...]

    @property
    def id(self) -> str:
        """Its UUID."""
        return str(uuid.uuid5(_IDS, f'router {self.number}'))

    @property
    def namespace(self) -> str:
        """As an L3 agent names it."""
        return f'qrouter-{self.id}'

    @property
    def interface(self) -> str:
        """The internal interface in its namespace."""
        return f'qr-{self.number}'

    @property
    def guests_namespace(self) -> str:
        """The namespace of its instances."""
        return f'guests-{self.number}'

    def make(self) -> None:
        """Make both namespaces and the link between them."""
        for name in (self.namespace, self.guests_namespace):
            if not namespaces.exists(name):
                ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('-n', self.namespace, 'link', 'add', self.interface, 'type', 'veth', 'peer', 'name', 'eth0',
           'netns', self.guests_namespace)  # fmt: skip
        ip('-n', self.namespace, 'address', 'add', '10.1.1.1/24', 'dev', self.interface)
        ip('-n', self.namespace, 'link', 'set', self.interface, 'up')
        for client in self.clients:
            ip('-n', self.guests_namespace, 'address', 'add', f'{client.address}/24', 'dev', 'eth0')
        ip('-n', self.guests_namespace, 'link', 'set', 'eth0', 'up')
        ip('-n', self.guests_namespace, 'route', 'add', 'default', 'via', '10.1.1.1')
        ip('netns', 'exec', self.namespace, 'sysctl', '-qw', 'net.ipv4.ip_forward=1')

    def delete(self) -> None:
        """Delete the router's namespace; that of the instances stays."""
        # The kernel deletes a namespace some time later; then the link would still be there when it is made again.
        ip('-n', self.guests_namespace, 'link', 'delete', 'eth0')
        ip('netns', 'delete', self.namespace)

    def ports(self) -> Iterator[dict[str, Any]]:
        """Its ports and those of its instances, as Neutron shows them."""
        network = f'network-{self.number}'
        yield port(network, 'network:router_interface', self.id, '', '10.1.1.1')
        for client in self.clients:
            yield port(network, 'compute:nova', client.instance_id, client.project_id, client.address)


def make_routers(routers: int, clients_per_router: int) -> list[Router]:
    """Routers and instances; nothing is made in the kernel."""
    made = []
    for number in range(routers):
        clients = tuple(
            Client(number * clients_per_router + one, number, f'10.1.1.{2 + one}', f'instance-{number}-{one}',
                   f'project-{number}')
            for one in range(clients_per_router)
        )  # fmt: skip
        made.append(Router(number, clients))
    return made


def make_services_link() -> None:
    """The namespace of the services, and the host's link to it."""
    ip('netns', 'add', SERVICES_NAMESPACE)
    ip('-n', SERVICES_NAMESPACE, 'link', 'set', 'lo', 'up')
    ip('link', 'add', SERVICES_LINK, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', SERVICES_NAMESPACE)
    ip('address', 'add', f'{HOST}/24', 'dev', SERVICES_LINK)
    ip('link', 'set', SERVICES_LINK, 'up')
    ip('-n', SERVICES_NAMESPACE, 'address', 'add', f'{SERVICES}/24', 'dev', 'eth0')
    ip('-n', SERVICES_NAMESPACE, 'link', 'set', 'eth0', 'up')


def remove(routers: Sequence[Router]) -> None:
    """Delete all namespaces and the link of the host."""
    links = [
        ['link', 'delete', SERVICES_LINK],
        *(['-n', r.guests_namespace, 'link', 'delete', 'eth0'] for r in routers),
    ]
    names = [SERVICES_NAMESPACE, *(name for r in routers for name in (r.namespace, r.guests_namespace))]
    for words in (*links, *(['netns', 'delete', name] for name in names)):
        subprocess.run(['ip', *words], check=False, capture_output=True)
