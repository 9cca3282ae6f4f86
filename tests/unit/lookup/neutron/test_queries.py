# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.lookup.neutron import queries
from metadata_wsgi.pipeline.environ_keys import Instance

from .fakes import port

NETWORKS = frozenset({'network-1', 'network-2'})
ONE = Instance('instance-1', 'project-1', 'port-1')


def found(*ports, address='10.1.1.2'):
    return queries.instances_at(address, NETWORKS, ports)


def test_a_routers_networks_are_asked_for_by_every_kind_of_router():
    """bug 1353271: the interfaces of distributed and of highly available routers have owners of their own."""
    query = queries.networks_of('router-1')
    assert ('device_id', 'router-1') in query
    assert [value for name, value in query if name == 'device_owner'] == [
        'network:router_interface',
        'network:router_interface_distributed',
        'network:ha_router_replicated_interface',
    ]


def test_a_dual_stack_router_has_two_ports_on_one_network():
    ports = [{'network_id': 'n2'}, {'network_id': 'n1'}, {'network_id': 'n2'}]
    assert queries.network_ids(ports) == ['n2', 'n1']


def test_without_networks_nothing_is_asked():
    """An address alone is every tenant's."""
    assert list(queries.at('10.1.1.2', [])) == []


@given(st.lists(st.uuids().map(str), unique=True, min_size=1, max_size=300))
def test_each_question_is_about_some_of_the_networks_and_all_together_about_all(networks):
    batches = list(queries.at('10.1.1.2', networks))
    asked = [[value for name, value in query if name == 'network_id'] for query in batches]
    assert [network for batch in asked for network in batch] == networks
    assert all(0 < len(batch) <= queries.NETWORKS_AT_ONCE for batch in asked)
    assert all(('fixed_ips', 'ip_address=10.1.1.2') in query for query in batches)


@pytest.mark.parametrize(
    ('address', 'wanted'),
    [
        ('10.1.1.2', ('fixed_ips', 'ip_address=10.1.1.2')),
        ('2001:DB8:1:0:0:0:0:2', ('fixed_ips', 'ip_address=2001:db8:1::2')),
        ('fe80::f816:3eff:fe00:1', ('mac_address', 'fa:16:3e:00:00:01')),
        ('fe80::1234:5678:9abc:def0', ('fixed_ips', 'ip_address=fe80::1234:5678:9abc:def0')),
    ],
)
def test_what_is_asked_for_an_address(address, wanted):
    (query,) = queries.at(address, ['n1'])
    assert [pair for pair in query if pair[0] in ('fixed_ips', 'mac_address')] == [wanted]


def test_the_guest_at_the_address():
    assert found(port()) == (ONE,)


def test_an_answer_that_is_not_about_the_question_finds_nobody():
    """Neutron ignores a key of fixed_ips that it does not know and returns every port."""
    others = [port(fixed_ips=[{'ip_address': '10.1.1.3'}]), port(network_id='network-9'), port(fixed_ips=None)]
    assert found(*others) == ()


@pytest.mark.parametrize('owner', ['network:router_interface', 'network:dhcp', '', None, 'xcompute:nova'])
def test_who_is_no_instance(owner):
    assert found(port(device_owner=owner)) == ()


@pytest.mark.parametrize('owner', ['compute:nova', 'compute:', 'compute:az 2', 'baremetal:none'])
def test_who_is_an_instance(owner):
    assert found(port(device_owner=owner)) == (ONE,)


@pytest.mark.parametrize('missing', [{'device_id': ''}, {'project_id': ''}])
def test_a_port_without_instance_or_project_is_nobody(missing):
    assert found(port(**missing)) == ()


def test_a_quantum_that_knows_only_tenants():
    old = port(tenant_id='project-1')
    del old['project_id']
    assert found(old) == (ONE,)


def test_an_instance_is_found_once_whatever_number_of_ports_fit():
    assert found(port(), port(id='port-2')) == (ONE,)


def test_one_instance_id_under_two_projects_is_two():
    """bug 1235450: a tenant may write another's instance id on a port of its own."""
    assert len(found(port(), port(id='port-2', project_id='project-2'))) == 2


def test_a_link_local_address_is_compared_by_its_mac():
    address = 'fe80::f816:3eff:fe00:1'
    assert found(port(mac_address='FA:16:3E:00:00:01'), address=address) == (ONE,)
    assert found(port(mac_address='fa:16:3e:00:00:02'), address=address) == ()
    assert found(port(mac_address=None), address=address) == ()


def test_ipv6_is_compared_in_any_spelling():
    spelt = port(fixed_ips=[{'ip_address': '2001:0db8:0001::0002'}])
    assert found(spelt, address='2001:db8:1::2') == (ONE,)
