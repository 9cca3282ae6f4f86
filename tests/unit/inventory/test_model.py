# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.inventory import Inventory, Network, Port, Router, Subnet
from metadata_wsgi.inventory.model import mac_in

RED, BLUE = Network('red', 'red'), Network('blue', 'blue')


def port(name, network, mac, *addresses, instance='i'):
    return Port(name, network, mac, addresses, 'compute:nova', instance, 'p')


def cloud(*ports, routers=()):
    return Inventory(routers=routers, networks=(RED, BLUE), ports=ports)


def ids(ports):
    return [found.id for found in ports]


TWINS = (
    port('red-port', RED, '52:54:00:00:00:01', '10.1.1.2', '2001:db8::2'),
    port('blue-port', BLUE, '52:54:00:00:00:01', '10.1.1.2'),
)
ROUTERS = (Router('r-red', 'r', ('red',)), Router('r-both', 'r', ('red', 'blue')), Router('r-none', 'r', ()))


@pytest.mark.parametrize(
    ('address', 'where', 'found'),
    [
        ('10.1.1.2', {'network_id': 'red'}, ['red-port']),
        ('10.1.1.2', {'network_id': 'blue'}, ['blue-port']),
        ('10.1.1.2', {'router_id': 'r-red'}, ['red-port']),
        ('10.1.1.2', {'router_id': 'r-both'}, ['red-port', 'blue-port']),
        ('10.1.1.2', {'router_id': 'r-none'}, []),
        ('10.1.1.2', {'router_id': 'red'}, []),
        ('10.1.1.2', {'network_id': 'r-red'}, []),
        ('10.1.1.2', {}, []),
        ('10.1.1.3', {'network_id': 'red'}, []),
        ('2001:db8::2', {'router_id': 'r-both'}, ['red-port']),
        ('fe80::5054:ff:fe00:1', {'network_id': 'red'}, ['red-port']),
        ('fe80::5054:ff:fe00:1', {'router_id': 'r-both'}, ['red-port', 'blue-port']),
        ('fe80::5054:ff:fe00:2', {'network_id': 'red'}, []),
        ('fe80::1:5054:ff:fe00:1', {'network_id': 'red'}, []),
        ('2001:db8::5054:ff:fe00:1', {'network_id': 'red'}, []),
    ],
)
def test_an_address_is_found_only_behind_its_router_or_on_its_network(address, where, found):
    assert ids(cloud(*TWINS, routers=ROUTERS).instance_ports(address, **where)) == found


def test_a_port_without_an_instance_is_not_found():
    ours = port('gateway', RED, '52:54:00:00:00:fe', '10.1.1.1', instance=None)
    assert cloud(ours).instance_ports('10.1.1.1', network_id='red') == []
    assert cloud(ours).instance_ports('fe80::5054:ff:fe00:fe', network_id='red') == []


def test_a_link_local_address_from_the_file_and_one_from_the_mac_are_one_port():
    both = port('both', RED, '52:54:00:00:00:01', 'fe80::5054:ff:fe00:1')
    assert ids(cloud(both).instance_ports('fe80::5054:ff:fe00:1', network_id='red')) == ['both']


def test_a_link_local_address_of_one_port_and_from_the_mac_of_another_is_both_ports():
    """Neither may get the other's keys: the caller gets two and responds 404."""
    made = port('made', RED, '52:54:00:00:00:01')
    written = port('written', RED, '52:54:00:00:00:02', 'fe80::5054:ff:fe00:1')
    assert ids(cloud(made, written).instance_ports('fe80::5054:ff:fe00:1', network_id='red')) == ['written', 'made']


@pytest.mark.parametrize(
    ('address', 'mac'),
    [
        ('fe80::5054:ff:fe12:3456', '52:54:00:12:34:56'),
        ('fe80::f816:3eff:fec9:c030', 'fa:16:3e:c9:c0:30'),
        ('fe80::200:ff:fe00:1', '00:00:00:00:00:01'),
        ('fe80::1', None),
        ('fe80:1::5054:ff:fe12:3456', None),
        ('fd00::5054:ff:fe12:3456', None),
        ('169.254.255.254', None),
        ('nonsense', None),
    ],
)
def test_the_mac_in_an_address(address, mac):
    """RFC 4291, appendix A: ff:fe in the middle, and the second lowest bit of the first octet inverted."""
    assert mac_in(address) == mac


@given(st.ip_addresses().map(str), st.sampled_from(['red', 'blue', 'none']))
def test_no_other_address_finds_a_port(address, network):
    known = {'10.1.1.2', '2001:db8::2', 'fe80::5054:ff:fe00:1'}
    assert cloud(*TWINS).instance_ports(address, network_id=network) == [] or address in known


def test_a_subnet_knows_its_mask_and_its_addresses():
    assert Subnet('10.1.1.0/25').netmask == '255.255.255.128'
    assert Subnet('2001:db8::/64').netmask == 'ffff:ffff:ffff:ffff::'
    assert '10.1.1.127' in Subnet('10.1.1.0/25')
    assert '10.1.1.128' not in Subnet('10.1.1.0/25')
    assert '2001:db8::1' not in Subnet('10.1.1.0/25')
