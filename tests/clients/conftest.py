# SPDX-License-Identifier: Apache-2.0
"""Fixtures: two metadata paths that all tests of this package share, and a table of the cloud-init boots.

``METADATA_WSGI_BOOTS`` names a file to which the table is also written. With ``METADATA_WSGI_NIGHTLY=1`` every fault is
injected into every request and every Quantum lookup, which takes hours; without it each fault into some of them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import pytest

from tests.clients import cloud_init
from tests.clients.boot_table import Table, write
from tests.clients.cloud_init_requests import REQUESTS_BY_DATASOURCE
from tests.clients.fake_openstack import PASSWORD, FakeOpenStack, port
from tests.clients.metadata_path import Guest, MetadataPath
from tests.fault_injecting_proxy import FaultInjectingProxy

ROUTER = '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0001'
INSTANCE, BARE = '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0002', '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0003'
PROJECT = '5f0f2f5c9d4e4f9e8a532c7b8a6a0004'
NETWORK, PORT = '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0005', '5f0f2f5c-9d4e-4f9e-8a53-2c7b8a6a0006'
MAC = 'fa:16:3e:5f:0f:02'
KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBsGpqeMRzjoCdLAkWkMeMYBtLxlFGkSpp7PEM0fC6Z5 admin@example.org'
BARE_ADDRESS = '10.1.1.3'
# No port has the first, two ports have the second. The others identify the requests that get a fault.
UNKNOWN_ADDRESS, AMBIGUOUS_ADDRESS, FAULT_ADDRESSES = '10.1.1.5', '10.1.1.9', ('10.1.1.21', '10.1.1.22')
SECRET = 'a secret of tests'

# The guest has two addresses: of an instance with user-data, and of one without.
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
def shared_path(tmp_path_factory):
    """(path, fault-injecting proxy before Nova), made once for the package.

    It has a guest, its router with rules and namespace proxy, an agent with ``directory = static`` and, in Nova's
    place, the pipeline ``nova``.
    """
    path = MetadataPath(tmp_path_factory.mktemp('path'), Guest(ROUTER, MAC))
    (path.directory / 'inventory.yaml').write_text(INVENTORY)
    sections = (
        f'[static]\ninventory = {path.directory}/inventory.yaml\n'
        f'[metadata_app]\npassword_dir = {path.directory}/passwords'
    )
    options = {
        'directory': 'static', 'metadata_workers': 1, 'metadata_proxy_shared_secret': SECRET,
        'check_services_at_start': False,
    }  # fmt: skip
    try:
        path.configure(options, sections)
        with FaultInjectingProxy('127.0.0.1', path.start_nova()) as nova:
            path.configure({**options, 'nova_metadata_port': nova.listen_port}, sections)
            path.start_agent()
            path.attach()
            path.guest.add_address(BARE_ADDRESS)
            yield path, nova
    finally:
        path.remove()


@pytest.fixture(scope='package')
def boots_without_faults(shared_path, tmp_path_factory):
    """The results of boots without faults, by datasource; test_cloud_init_nova_faults checks them."""
    path, nova = shared_path
    nova.reset()
    return {
        name: cloud_init.run_boot(path.guest.namespace, name, tmp_path_factory.mktemp('boot'))
        for name in REQUESTS_BY_DATASOURCE
    }


@dataclass(frozen=True)
class FaultableServices:
    """A path with ``directory = quantum``, and the fault-injecting proxies before Keystone, Quantum and Nova."""

    path: MetadataPath
    keystone: FaultInjectingProxy
    quantum: FaultInjectingProxy
    nova: FaultInjectingProxy
    options: dict[str, object]
    sections: str

    def restart(self, **other):
        """Restart the agent with ``other`` options."""
        self.path.configure({**self.options, **other}, self.sections)
        self.path.start_agent()

    def reset(self):
        """Delete plans and recorded requests of all three proxies."""
        for proxy in (self.keystone, self.quantum, self.nova):
            proxy.reset()


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
def shared_services(tmp_path_factory):
    """A FaultableServices, made once for the package: the guest is attached and the agent runs."""
    path = MetadataPath(tmp_path_factory.mktemp('services'), Guest(ROUTER, MAC))
    (path.directory / 'inventory.yaml').write_text(INVENTORY)
    sections = f'[metadata_app]\ninventory = {path.directory}/inventory.yaml\npassword_dir = {path.directory}/passwords'
    options = {
        'metadata_workers': 1,
        'metadata_proxy_shared_secret': SECRET,
        'directory': 'quantum',
        'admin_user': 'service',
        'admin_password': PASSWORD,
        'admin_tenant_name': 'service',
        # The services get only requests that the tests cause.
        'check_services_at_start': False,
    }
    try:
        path.configure(options, sections)
        with (
            FakeOpenStack(PORTS) as openstack,
            FaultInjectingProxy('127.0.0.1', openstack.listen_port) as keystone,
            FaultInjectingProxy('127.0.0.1', openstack.listen_port) as quantum,
            FaultInjectingProxy('127.0.0.1', path.start_nova()) as nova,
        ):
            openstack.network_url = f'http://127.0.0.1:{quantum.listen_port}'
            addresses = {
                'auth_url': f'http://127.0.0.1:{keystone.listen_port}/v3',
                'nova_metadata_port': nova.listen_port,
            }
            services = FaultableServices(path, keystone, quantum, nova, {**options, **addresses}, sections)
            services.restart()
            path.attach()
            for address in (BARE_ADDRESS, UNKNOWN_ADDRESS, AMBIGUOUS_ADDRESS, *FAULT_ADDRESSES):
                path.guest.add_address(address)
            yield services
    finally:
        path.remove()


@pytest.fixture
def services(shared_services):
    """``shared_services`` without plans or recorded requests."""
    shared_services.reset()
    yield shared_services
    shared_services.reset()


@pytest.fixture
def metadata_path(shared_path):
    return shared_path[0]


@pytest.fixture
def guest(metadata_path):
    return metadata_path.guest


@pytest.fixture
def nova(shared_path):
    """The fault-injecting proxy before Nova, without plans or recorded requests."""
    shared_path[1].reset()
    yield shared_path[1]
    shared_path[1].reset()


@pytest.fixture
def table(request):
    return request.config.stash[TABLE]
