# SPDX-License-Identifier: Apache-2.0
"""Each guest gets the metadata of its own instance from the real services."""

import json

import pytest

from metadata_wsgi.netns import rtnetlink
from tests.clients.metadata_path import METADATA_V6
from tests.e2e.conftest import eventually
from tests.openstack.seed import ADDRESS_V6, CLAIMED, GHOST, NETWORKS_OF_ROUTER_MANY, Admin

pytestmark = [pytest.mark.openstack, pytest.mark.netns]

META_DATA = '/openstack/latest/meta_data.json'


@pytest.fixture(scope='module', autouse=True)
def agent(host):
    """The agent with Grizzly's options; its auth_url names Keystone's API v2.0, which no longer exists."""
    host.restart_agent(host.grizzly_configuration())


def uuid_of(response):
    assert response.status == 200, response
    return json.loads(response.body)['uuid']


@pytest.mark.parametrize('name', ['a', 'b', 'isolated', 'dual', 'many', 'dvr', 'ha'])
def test_guest_gets_its_own_metadata(host, seed, name):
    """All guests have the address 10.1.1.2, in different networks."""
    assert uuid_of(host.curl_until_served(name, META_DATA)) == seed[name].instance_id
    assert host.curl_until_served(name, '/latest/meta-data/hostname').body.decode() == seed[name].hostname
    assert host.curl_until_served(name, '/latest/meta-data/instance-id').body.decode() == seed[name].ec2_id
    assert host.curl_until_served(name, '/openstack/latest/user_data').body == seed[name].user_data
    assert host.curl_until_served(name, '/latest/user-data').body == seed[name].user_data
    assert (
        host.curl_until_served(name, '/latest/meta-data/public-keys/0/openssh-key').body.decode()
        == seed[name].public_key
    )


def test_seeded_guests_have_the_same_address(openstack, seed):
    admin = Admin(openstack.services)
    ports = admin.neutron('GET', 'ports?fixed_ips=ip_address%3D10.1.1.2')['ports']
    admin.close()
    names = ('a', 'b', 'isolated', 'dual', 'many', 'dvr', 'ha')
    assert {seed[name].instance_id for name in names} <= {port['device_id'] for port in ports}


def test_seeded_router_has_many_networks(openstack, seed):
    """More than fit into one URL: Neutron responds 414 to a hundred."""
    admin = Admin(openstack.services)
    ports = admin.neutron('GET', f'ports?device_id={seed["many"].router_id}')['ports']
    admin.close()
    assert len({port['network_id'] for port in ports}) == NETWORKS_OF_ROUTER_MANY


def test_instance_missing_in_nova_gives_404(host):
    assert host.curl_until_served('a', META_DATA, source=GHOST).status == 404


def test_address_without_port_gives_404(host):
    host.guest('a').add_address('10.1.1.99')
    assert host.curl_until_served('a', META_DATA, source='10.1.1.99').status == 404


def test_port_with_device_id_of_another_tenants_instance_gives_404(host, seed):
    """Nova compares the port's project (bug 1235450), which the agent must send."""
    for path in (META_DATA, '/latest/user-data', '/latest/meta-data/hostname'):
        response = host.curl_until_served('b', path, source=CLAIMED)
        assert response.status == 404
        assert seed['a'].instance_id.encode() not in response.body
        assert seed['a'].hostname.encode() not in response.body
    # The other guest in that network gets its metadata.
    assert uuid_of(host.curl_until_served('b', META_DATA)) == seed['b'].instance_id


def test_unknown_router_gives_503_without_an_address_lookup(host, seed, services):
    """A router that sends requests has a port. If Neutron does not show the port, it hides ports, or is another one."""
    router, address = '00000000-0000-4000-8000-000000000000', '10.9.9.9'
    message = f'shows no port of router {router}, which sent a request'
    done = host.metadata_wsgi_until(message, 'explain', '--router-id', router, address)
    assert done.returncode == 1
    assert 'response      503' in done.stdout
    assert message in done.stdout + done.stderr
    # gunicorn writes the line after the response.
    eventually(
        lambda: any(router in line for line in services.requests_from('metadata_wsgi', 'neutron')),
        'the query is logged',
    )
    assert not any(address in line for line in services.requests_from('metadata_wsgi', 'neutron'))


def test_ipv6_from_the_link_local_address(host, seed):
    """To fe80::a9fe:a9fe, from an address derived from the port's MAC, which is not in Quantum."""
    assert uuid_of(host.curl_until_served('dual', META_DATA, host=f'[{METADATA_V6}]')) == seed['dual'].instance_id


def test_ipv6_from_the_ports_address(host, seed):
    guest = host.guest('dual')
    for namespace, interface, address in (
        (guest.gateway_namespace, guest.gateway_interface, '2001:db8:1::1'),
        (guest.namespace, 'eth0', ADDRESS_V6),
    ):
        with rtnetlink.connect(namespace) as links:
            index = links.link_lookup(ifname=interface)[0]
            # IFA_F_NODAD: no duplicate is possible.
            links.addr('add', index=index, address=address, prefixlen=64, flags=0x02)
    response = host.curl_until_served('dual', META_DATA, host=f'[{METADATA_V6}]', source=f'host!{ADDRESS_V6}')
    assert uuid_of(response) == seed['dual'].instance_id


def test_wrong_shared_secret_gives_403_and_one_log_line(host):
    try:
        host.restart_agent(host.grizzly_configuration(metadata_proxy_shared_secret='another than Nova has'))
        assert host.curl_until_served('a', META_DATA).status == 403
        assert host.curl_until_served('a', META_DATA).status == 403
        lines = [line for line in host.log_text().splitlines() if '403' in line and 'nova_proxy.upstream' in line]
        assert len(lines) == 1
        assert 'compare metadata_proxy_shared_secret here with [neutron] metadata_proxy_shared_secret' in lines[0]
        assert 'another than Nova has' not in host.log_text()
    finally:
        host.restart_agent(host.grizzly_configuration())
