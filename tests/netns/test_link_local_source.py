# SPDX-License-Identifier: Apache-2.0
"""Two networks of one router on which instances have the same link-local address: each gets its own metadata only.

::

    guest-1 fe80::f816:3eff:fe00:1 --- qr-aaaaaaaa-aa [router] qr-bbbbbbbb-bb --- fe80::f816:3eff:fe00:1 guest-2
                                                                                  fe80::f816:3eff:fe00:9, not its own
"""

import subprocess
import uuid

import pytest

from tests.cloud import Cloud
from tests.e2e.conftest import eventually

from .keeper_host import TARGET, KeeperHost
from .router_topology import ip

pytestmark = pytest.mark.netns

MAC = 'fa:16:3e:00:00:01'
SAME, OTHER = 'fe80::f816:3eff:fe00:1', 'fe80::f816:3eff:fe00:9'
INVENTORY = f"""
routers: [{{id: router-a, networks: [net-1, net-2]}}]
networks: [{{id: net-1}}, {{id: net-2}}]
ports:
- {{id: aaaaaaaa-aa01, network: net-1, mac: 'fa:16:3e:00:00:f1', device_owner: network:router_interface}}
- {{id: bbbbbbbb-bb01, network: net-2, mac: 'fa:16:3e:00:00:f2', device_owner: network:router_interface}}
- {{id: port-1, network: net-1, mac: '{MAC}', instance: instance-a}}
- {{id: port-2, network: net-2, mac: '{MAC}', instance: instance-b}}
- {{id: port-9, network: net-1, mac: 'fa:16:3e:00:00:09', instance: instance-c}}
instances:
- {{id: instance-a, project: project-a, name: one}}
- {{id: instance-b, project: project-b, name: two}}
- {{id: instance-c, project: project-c, name: nine}}
"""


@pytest.fixture
def namespaces():
    """The router's namespace, and those of an instance on each of its networks."""
    id_ = uuid.uuid4().hex[:8]
    router, *guests = names = [f'qrouter-{id_}', f'guest-1-{id_}', f'guest-2-{id_}']
    try:
        for name in names:
            ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        for guest, interface in zip(guests, ('qr-aaaaaaaa-aa', 'qr-bbbbbbbb-bb'), strict=True):
            ip('-n', router, 'link', 'add', interface, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guest)
            ip('-n', guest, 'link', 'set', 'eth0', 'address', MAC)
            ip('netns', 'exec', guest, 'sysctl', '-qw', 'net.ipv6.conf.eth0.accept_dad=0')
            ip('-n', router, 'link', 'set', interface, 'up')
            ip('-n', guest, 'link', 'set', 'eth0', 'up')
        # The interface with a router's address is the one that serves: see netns/link_local.
        ip('-n', router, 'address', 'add', '10.1.1.1/24', 'dev', 'qr-aaaaaaaa-aa')
        ip('-n', router, 'address', 'add', '10.1.2.1/24', 'dev', 'qr-bbbbbbbb-bb')
        yield router, guests
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'delete', name], check=False, capture_output=True)


@pytest.fixture
def host(directory):
    with Cloud(directory) as cloud:
        host = KeeperHost(directory, cloud)
        (directory / 'inventory.yaml').write_text(INVENTORY)
        try:
            yield host.start()
        finally:
            host.close()


def curl(namespace, *words):
    url = f'http://[fe80::a9fe:a9fe%25eth0]{TARGET}'
    command = ['ip', 'netns', 'exec', namespace, 'curl', '-gs', '-m', '20', *words, url]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize('mode', ['process', 'shared', 'one_hop'])
def test_one_link_local_address_on_two_networks_is_two_instances(host, namespaces, mode):
    router, (first, second) = namespaces
    code, out, err = host.metadata_wsgi('attach', '--mode', mode, '--router-id', 'router-a', '--namespace', router)
    assert code == 0, (out, err)
    # Not before the address of the router is known to be unique on both networks.
    eventually(lambda: 'instance-a' in curl(first), 'the first network is served', within_s=90)
    eventually(lambda: 'instance-b' in curl(second), 'the second network is served', within_s=90)
    assert 'instance-a' in curl(first)
    forged = ('-H', 'X-Metadata-Interface: qr-aaaaaaaa-aa')
    assert 'instance-b' in curl(second, *forged)
    # The address of an instance on the other network, as an instance without port security can take it.
    ip('-n', second, 'address', 'del', f'{SAME}/64', 'dev', 'eth0')
    ip('-n', second, 'address', 'add', f'{OTHER}/64', 'dev', 'eth0', 'nodad')
    assert 'No instance' in curl(second, *forged), host.text()
