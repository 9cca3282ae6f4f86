# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.lookup.neutron import queries
from metadata_wsgi.pipeline.environ_keys import Instance

from .fakes import port

NETWORKS = frozenset({'network-1', 'network-2'})
ADDRESS = queries.address_filter('10.1.1.2')
ONE = Instance('instance-1', 'project-1', 'port-1')


def router_port(network_id, device_id='router-1', port_id=None):
    return {'id': port_id, 'device_id': device_id, 'network_id': network_id}


def found(*ports, address='10.1.1.2'):
    return queries.matching_instances(address, NETWORKS, ports)


def test_the_query_for_router_ports_has_the_owners_of_every_kind_of_router():
    """bug 1353271: the interfaces of DVR and HA routers have other owners."""
    query = queries.router_ports_query(['router-1', 'router-2'])
    assert [value for name, value in query if name == 'device_id'] == ['router-1', 'router-2']
    assert [value for name, value in query if name == 'device_owner'] == [
        'network:router_interface',
        'network:router_interface_distributed',
        'network:ha_router_replicated_interface',
    ]


def test_the_two_ports_of_a_dual_stack_router_are_one_network():
    ports = [router_port('n2'), router_port('n1'), router_port('n2')]
    assert queries.networks_behind(queries.router_networks('router-1', ports), None) == ['n2', 'n1']


def test_the_ports_of_another_router_of_the_same_batch_are_ignored():
    ports = [router_port('n1'), router_port('n2', device_id='router-2'), {'id': 'p', 'network_id': 'n3'}]
    assert [network for _, network in queries.router_networks('router-1', ports)] == ['n1']


@pytest.mark.parametrize(
    ('interface', 'networks'),
    [(None, ['n1', 'n2']), ('qr-aaaaaaaa-aa', ['n1']), ('qr-bbbbbbbb-bb', ['n2']), ('qg-aaaaaaaa-aa', []), ('qr-', [])],
)
def test_the_network_of_an_interface_of_a_router(interface, networks):
    ports = [
        router_port('n1', port_id='aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa'),
        router_port('n2', port_id='bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb'),
    ]
    assert queries.networks_behind(queries.router_networks('router-1', ports), interface) == networks


def test_without_networks_there_is_no_query():
    """An address alone matches the ports of every tenant."""
    assert list(queries.ports_queries([ADDRESS], [])) == []


@given(st.lists(st.uuids().map(str), unique=True, min_size=1, max_size=300))
def test_the_queries_have_batches_of_networks_that_cover_all_of_them(networks):
    batches = list(queries.ports_queries([ADDRESS], networks))
    queried = [[value for name, value in query if name == 'network_id'] for query in batches]
    assert [network for batch in queried for network in batch] == networks
    assert all(0 < len(batch) <= queries.MAX_NETWORKS_PER_QUERY for batch in queried)
    assert all(ADDRESS in query for query in batches)


@pytest.mark.parametrize(
    ('address', 'expected'),
    [
        ('10.1.1.2', ('fixed_ips', 'ip_address=10.1.1.2')),
        ('2001:DB8:1:0:0:0:0:2', ('fixed_ips', 'ip_address=2001:db8:1::2')),
        ('fe80::f816:3eff:fe00:1', ('mac_address', 'fa:16:3e:00:00:01')),
        ('fe80::1234:5678:9abc:def0', ('fixed_ips', 'ip_address=fe80::1234:5678:9abc:def0')),
    ],
)
def test_the_filter_of_the_query_for_an_address(address, expected):
    assert queries.address_filter(address) == expected


def test_a_query_for_several_addresses_and_networks_has_all_of_them():
    other = queries.address_filter('10.1.1.3')
    (query,) = queries.ports_queries([ADDRESS, other], ['n1', 'n2'])
    assert query[:4] == (('network_id', 'n1'), ('network_id', 'n2'), ADDRESS, other)


def test_the_port_with_the_address_is_the_instance():
    assert found(port()) == (ONE,)


def test_ports_that_the_query_did_not_select_are_ignored():
    """Neutron ignores a key of fixed_ips that it does not know and returns every port."""
    others = [port(fixed_ips=[{'ip_address': '10.1.1.3'}]), port(network_id='network-9'), port(fixed_ips=None)]
    assert found(*others) == ()


@pytest.mark.parametrize('owner', ['network:router_interface', 'network:dhcp', '', None, 'xcompute:nova'])
def test_a_port_of_another_owner_is_no_instance(owner):
    assert found(port(device_owner=owner)) == ()


@pytest.mark.parametrize('owner', ['compute:nova', 'compute:', 'compute:az 2', 'baremetal:none'])
def test_a_port_of_nova_or_ironic_is_an_instance(owner):
    assert found(port(device_owner=owner)) == (ONE,)


@pytest.mark.parametrize('missing', [{'device_id': ''}, {'project_id': ''}])
def test_a_port_without_instance_or_project_is_ignored(missing):
    assert found(port(**missing)) == ()


def test_a_neutron_that_has_only_tenant_ids():
    old = port(tenant_id='project-1')
    del old['project_id']
    assert found(old) == (ONE,)


def test_an_instance_with_two_matching_ports_is_found_once():
    assert found(port(), port(id='port-2')) == (ONE,)


def test_one_instance_id_under_two_projects_is_two():
    """bug 1235450: a tenant may set another tenant's instance id on its own port."""
    assert len(found(port(), port(id='port-2', project_id='project-2'))) == 2


def test_a_link_local_address_is_compared_by_its_mac():
    address = 'fe80::f816:3eff:fe00:1'
    assert found(port(mac_address='FA:16:3E:00:00:01'), address=address) == (ONE,)
    assert found(port(mac_address='fa:16:3e:00:00:02'), address=address) == ()
    assert found(port(mac_address=None), address=address) == ()


def test_ipv6_addresses_are_normalized_before_they_are_compared():
    uncompressed = port(fixed_ips=[{'ip_address': '2001:0db8:0001::0002'}])
    assert found(uncompressed, address='2001:db8:1::2') == (ONE,)
