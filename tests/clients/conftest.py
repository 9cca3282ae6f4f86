# SPDX-License-Identifier: Apache-2.0
"""One way for all tests of this package, a cloud-init where it is installed, and a table of its boots.

``METADATA_WSGI_BOOTS`` names a file that the table is also written to. ``METADATA_WSGI_NIGHTLY=1`` lets every fault
meet every request, and every question to Quantum, which takes hours; without it each fault meets some.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import pytest

from tests.clients import boot as cloud_init
from tests.clients.crawls import CRAWLS
from tests.clients.openstack import PASSWORD, OpenStack, port
from tests.clients.table import Table, write
from tests.clients.way import Guest, Way
from tests.injector import Injector

ROUTER = '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0001'
INSTANCE, BARE = '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0002', '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0003'
PROJECT = '5f0f2f5c9d4e4f9e8a532c7b8a6a0004'
NETWORK, PORT = '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0005', '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0006'
MAC = 'fa:16:3e:5f:0f:02'
KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBsGpqeMRzjoCdLAkWkMeMYBtLxlFGkSpp7PEM0fC6Z5 admin@example.org'
BARE_ADDRESS = '10.1.1.3'
# No port has the first, two have the second; the others are there for faults to be told apart by.
NOBODYS_ADDRESS, AMBIGUOUS_ADDRESS, UNLUCKY_ADDRESSES = '10.1.1.5', '10.1.1.9', ('10.1.1.21', '10.1.1.22')
SECRET = 'a secret of tests'

# The guest, and at its second address an instance without user-data, whose password may be too long.
INVENTORY = f"""
routers:
- {{id: {ROUTER}, networks: [{NETWORK}]}}
networks:
- {{id: {NETWORK}, mtu: 1450, subnets: [{{cidr: 10.1.1.0/24, gateway: 10.1.1.1, dns: [192.0.2.53]}}]}}
ports:
- {{id: {PORT}, network: {NETWORK}, mac: '{MAC}', addresses: [10.1.1.2], instance: {INSTANCE}, project: {PROJECT}}}
- {{id: port-bare, network: {NETWORK}, mac: 'fa:16:3e:5f:0f:03', addresses: [{BARE_ADDRESS}],
   instance: {BARE}, project: {PROJECT}}}
instances:
- id: {INSTANCE}
  project: {PROJECT}
  name: web
  public_keys: {{admin: {KEY}}}
  metadata: {{role: web}}
  user_data: "#cloud-config\\n# for web\\n"
  vendor_data: {{cloud-init: "#cloud-config\\n# of the vendor\\n"}}
  vendor_data2: {{cloud-init: "#cloud-config\\n# of another vendor\\n"}}
- {{id: {BARE}, project: {PROJECT}, name: bare}}
"""

TABLE = pytest.StashKey[Table]()


def pytest_configure(config):
    config.stash[TABLE] = Table()


def pytest_collection_modifyitems(items):
    for item in items:
        if 'cloudinit' in item.keywords and not os.path.exists(cloud_init.PROGRAM):
            item.add_marker(pytest.mark.skip(reason=f'{cloud_init.PROGRAM} is not installed (the package cloud-init)'))
        if 'netns' in item.keywords and (os.geteuid() or not shutil.which('ip')):
            item.add_marker(pytest.mark.skip(reason='makes network namespaces: run it as root, with iproute2'))


def pytest_terminal_summary(terminalreporter, config):
    text = str(config.stash[TABLE])
    if text:
        terminalreporter.section('boots of cloud-init with faults injected')
        terminalreporter.write_line(text)
    file = os.environ.get('METADATA_WSGI_BOOTS')
    if text and file:
        write(file, text)


@pytest.fixture(scope='package')
def shared_way(tmp_path_factory):
    """(way, injector before Nova), Nova being the package's own metadata app."""
    way = Way(tmp_path_factory.mktemp('way'), Guest(ROUTER, MAC))
    (way.directory / 'inventory.yaml').write_text(INVENTORY)
    sections = (
        f'[static]\ninventory = {way.directory}/inventory.yaml\n'
        f'[metadata_app]\npassword_dir = {way.directory}/passwords'
    )
    options = {
        'directory': 'static', 'metadata_workers': 1, 'metadata_proxy_shared_secret': SECRET,
        'check_services_at_start': False,
    }  # fmt: skip
    try:
        way.configure(options, sections)
        with Injector('127.0.0.1', way.start_nova()) as nova:
            way.configure({**options, 'nova_metadata_port': nova.listens_on}, sections)
            way.start_agent()
            way.attach()
            way.guest.also_has(BARE_ADDRESS)
            yield way, nova
    finally:
        way.remove()


@pytest.fixture(scope='package')
def undisturbed(shared_way, tmp_path_factory):
    """What a boot comes to when nothing fails, by datasource; test_cloud_init says what that must be."""
    way, nova = shared_way
    nova.forget()
    return {name: cloud_init.boot(way.guest.namespace, name, tmp_path_factory.mktemp('boot')) for name in CRAWLS}


@dataclass(frozen=True)
class Behind:
    """A way with directory = quantum, and the injectors before the three services behind it."""

    way: Way
    keystone: Injector
    quantum: Injector
    nova: Injector
    options: dict[str, object]
    sections: str

    def restart(self, **other):
        """Another agent, with ``other`` options."""
        self.way.configure({**self.options, **other}, self.sections)
        self.way.start_agent()

    def forget(self):
        """No plans, nothing seen."""
        for injector in (self.keystone, self.quantum, self.nova):
            injector.forget()


PORTS = (
    port(NETWORK, 'network:router_interface', ROUTER, '', '10.1.1.1'),
    port(NETWORK, 'network:dhcp', 'dhcp', PROJECT, '10.1.1.4'),
    port(NETWORK, 'compute:nova', INSTANCE, PROJECT, '10.1.1.2', mac_address=MAC),
    port(NETWORK, 'compute:nova', BARE, PROJECT, BARE_ADDRESS),
    port(NETWORK, 'compute:nova', 'one-instance', PROJECT, AMBIGUOUS_ADDRESS, id='port-one'),
    port(NETWORK, 'compute:nova', 'other-instance', PROJECT, AMBIGUOUS_ADDRESS, id='port-other'),
    port('another-network', 'compute:nova', 'another-instance', 'another-project', '10.1.1.2'),
)


@pytest.fixture(scope='package')
def shared_behind(tmp_path_factory):
    """A Behind, attached; its agent runs."""
    way = Way(tmp_path_factory.mktemp('behind'), Guest(ROUTER, MAC))
    (way.directory / 'inventory.yaml').write_text(INVENTORY)
    sections = f'[metadata_app]\ninventory = {way.directory}/inventory.yaml\npassword_dir = {way.directory}/passwords'
    options = {
        'metadata_workers': 1,
        'metadata_proxy_shared_secret': SECRET,
        'directory': 'quantum',
        'admin_user': 'service',
        'admin_password': PASSWORD,
        'admin_tenant_name': 'service',
        # What the services hear is what guests asked for.
        'check_services_at_start': False,
    }
    try:
        way.configure(options, sections)
        with (
            OpenStack(PORTS) as openstack,
            Injector('127.0.0.1', openstack.listens_on) as keystone,
            Injector('127.0.0.1', openstack.listens_on) as quantum,
            Injector('127.0.0.1', way.start_nova()) as nova,
        ):
            openstack.network_url = f'http://127.0.0.1:{quantum.listens_on}'
            services = {
                'auth_url': f'http://127.0.0.1:{keystone.listens_on}/v3',
                'nova_metadata_port': nova.listens_on,
            }
            behind = Behind(way, keystone, quantum, nova, {**options, **services}, sections)
            behind.restart()
            way.attach()
            for address in (BARE_ADDRESS, NOBODYS_ADDRESS, AMBIGUOUS_ADDRESS, *UNLUCKY_ADDRESSES):
                way.guest.also_has(address)
            yield behind
    finally:
        way.remove()


@pytest.fixture
def behind(shared_behind):
    """The Behind, with nothing planned and nothing seen."""
    shared_behind.forget()
    yield shared_behind
    shared_behind.forget()


@pytest.fixture
def way(shared_way):
    return shared_way[0]


@pytest.fixture
def guest(way):
    return way.guest


@pytest.fixture
def nova(shared_way):
    """The injector before Nova, with nothing planned and nothing seen."""
    shared_way[1].forget()
    yield shared_way[1]
    shared_way[1].forget()


@pytest.fixture
def table(request):
    return request.config.stash[TABLE]
