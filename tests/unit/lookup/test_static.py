# SPDX-License-Identifier: Apache-2.0
import logging

import pytest

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, LookupUnavailable
from metadata_wsgi.inventory import parse
from metadata_wsgi.lookup import protocol, static
from metadata_wsgi.pipeline.environ_keys import Instance, Source

CLOUD = """\
routers:
- {id: r1, networks: [n1]}
- {id: r2, networks: [n2]}
- {id: bare, networks: []}
- {id: both, networks: [n1, n2]}
networks: [{id: n1}, {id: n2}, {id: n3}]
ports:
- {id: p1, network: n1, mac: '52:54:00:00:00:01', addresses: [10.1.1.2], instance: i1}
- {id: p2, network: n2, mac: '52:54:00:00:00:02', addresses: [10.1.1.2, '2001:db8::2'], instance: i2}
- {id: p3, network: n3, mac: '52:54:00:00:00:03', addresses: [10.1.1.2], instance: i3}
- {id: gw, network: n1, mac: '52:54:00:00:00:fe', addresses: [10.1.1.1], project: red}
instances:
- {id: i1, project: red, name: one}
- {id: i2, project: blue, name: two}
- {id: i3, project: green, name: three}
"""
# The creation time of a port does not count in comparisons of instances.
ONE, TWO, THREE = Instance('i1', 'red', 'p1'), Instance('i2', 'blue', 'p2'), Instance('i3', 'green', 'p3')


@pytest.mark.parametrize(
    ('source', 'found'),
    [
        (Source('10.1.1.2', router_id='r1'), (ONE,)),
        (Source('10.1.1.2', router_id='r2'), (TWO,)),
        (Source('10.1.1.2', network_id='n3'), (THREE,)),
        (Source('2001:db8::2', router_id='r2'), (TWO,)),
        (Source('2001:db8::2', router_id='r1'), ()),
        (Source('fe80::5054:ff:fe00:2', router_id='r2'), (TWO,)),
        (Source('10.1.1.2', router_id='both'), (ONE, TWO)),
        (Source('10.1.1.2', router_id='bare'), ()),
        (Source('10.1.1.2', router_id='unknown'), ()),
        (Source('10.1.1.2', network_id='unknown'), ()),
        (Source('10.1.1.1', router_id='r1'), ()),
        (Source('10.1.1.9', router_id='r1'), ()),
    ],
    ids=str,
)
def test_instances_of_an_address(source, found):
    inventory = parse(CLOUD.encode(), 'f.yaml')
    lookup: protocol.InstanceLookup = static.StaticLookup(lambda: inventory)
    assert lookup.find(source, Deadline.after(1)) == found


def test_each_lookup_uses_the_current_inventory():
    states = [parse(CLOUD.encode(), 'f.yaml'), parse(b'networks: []\nports: []\ninstances: []\n', 'f.yaml')]
    lookup = static.StaticLookup(lambda: states.pop(0))
    source = Source('10.1.1.2', network_id='n3')
    assert [lookup.find(source, Deadline.after(1)) for _ in range(2)] == [(THREE,), ()]


def conf(tmp_path, text):
    path = tmp_path / 'agent.ini'
    path.write_text(text)
    return {'config_file': str(path)}


def test_the_factory_reads_the_file_that_the_option_names(tmp_path):
    (tmp_path / 'cloud.yaml').write_text(CLOUD)
    lookup = static.factory(conf(tmp_path, f'[static]\ninventory = {tmp_path}/cloud.yaml\n'))
    assert lookup.find(Source('10.1.1.2', router_id='r1'), Deadline.after(1)) == (ONE,)


def test_without_the_option_the_start_is_stopped(tmp_path):
    with pytest.raises(ConfigError, match=r'inventory is missing from \[static\]'):
        static.factory(conf(tmp_path, '[DEFAULT]\n'))


def test_a_wrong_file_stops_the_start(tmp_path):
    (tmp_path / 'cloud.yaml').write_text('networks: []\n')
    with pytest.raises(ConfigError, match=r'cloud\.yaml:1: ports is missing from the inventory'):
        static.factory(conf(tmp_path, f'[static]\ninventory = {tmp_path}/cloud.yaml\n'))


def test_the_creation_time_of_the_port():
    cloud = CLOUD.replace('instance: i1}', "instance: i1, created_at: '1970-01-01T00:01:00Z'}")
    found = [
        static.StaticLookup(lambda: parse(cloud.encode(), 'x')).find(
            Source('10.1.1.2', router_id=router), Deadline.after(1)
        )
        for router in ('r1', 'r2')
    ]
    assert [one[0].created_at_s for one in found] == [60.0, None]


TWO_NETWORKS = """\
routers: [{id: r, networks: [n1, n2]}, {id: bare, networks: [n2]}]
networks: [{id: n1}, {id: n2}]
ports:
- {id: aaaaaaaa-aa01, network: n1, mac: '52:54:00:00:00:f1', device_owner: network:router_interface}
- {id: bbbbbbbb-bb01, network: n2, mac: '52:54:00:00:00:f2', device_owner: network:router_interface}
- {id: p1, network: n1, mac: '52:54:00:00:00:01', instance: i1}
- {id: p2, network: n2, mac: '52:54:00:00:00:01', instance: i2}
- {id: p3, network: n2, mac: '52:54:00:00:00:03', instance: i3}
instances: [{id: i1, project: red, name: one}, {id: i2, project: blue, name: two}, {id: i3, project: blue, name: three}]
"""
SAME, OTHER = 'fe80::5054:ff:fe00:1', 'fe80::5054:ff:fe00:3'


@pytest.mark.parametrize(
    ('address', 'interface', 'found'),
    [
        (SAME, 'qr-aaaaaaaa-aa', ['i1']),
        (SAME, 'qr-bbbbbbbb-bb', ['i2']),
        # An address of the other network, taken by an instance on this one: never that of another tenant.
        (OTHER, 'qr-aaaaaaaa-aa', []),
        (OTHER, 'qr-bbbbbbbb-bb', ['i3']),
        (OTHER, 'qg-bbbbbbbb-bb', []),
        (OTHER, 'qr-cccccccc-cc', []),
        (OTHER, 'qr-', []),
        (OTHER, 'qr-p', []),
        (SAME, None, ['i1', 'i2']),
    ],
)
def test_a_link_local_address_is_searched_on_the_network_of_its_interface(address, interface, found):
    lookup = static.StaticLookup(lambda: parse(TWO_NETWORKS.encode(), 'f.yaml'))
    source = Source(address, router_id='r', interface=interface)
    assert [one.instance_id for one in lookup.find(source, Deadline.after(1))] == found


def test_the_interface_of_a_router_with_one_network_needs_no_port_in_the_inventory():
    lookup = static.StaticLookup(lambda: parse(TWO_NETWORKS.encode(), 'f.yaml'))
    source = Source(SAME, router_id='bare', interface='qr-1')
    assert [one.instance_id for one in lookup.find(source, Deadline.after(1))] == ['i2']


def test_an_unknown_address_while_a_newer_inventory_is_read_is_retried_and_no_404():
    lookup = static.StaticLookup(lambda: parse(CLOUD.encode(), 'f.yaml'), is_reloading=lambda: True)
    assert lookup.find(Source('10.1.1.2', router_id='r1'), Deadline.after(1)) == (ONE,)
    with pytest.raises(LookupUnavailable, match='newer inventory'):
        lookup.find(Source('10.1.1.9', router_id='r1'), Deadline.after(1))


def test_a_port_with_the_address_but_without_an_instance_is_reported():
    """For explain, and for the log: 'no instance has this address' alone would send the operator to the wrong place."""
    lookup = static.StaticLookup(lambda: parse(CLOUD.encode(), 'f.yaml'))
    reported = []
    lookup.on_other_port = reported.append
    assert lookup.find(Source('10.1.1.1', router_id='r1'), Deadline.after(1)) == ()
    assert reported == ['port gw has the address 10.1.1.1, but belongs to network and has no instance']
    lookup.find(Source('10.1.1.2', router_id='r1'), Deadline.after(1))
    lookup.find(Source('10.1.1.1', router_id='r2'), Deadline.after(1))
    assert len(reported) == 1


def test_log_of_a_port_without_an_instance_is_throttled(caplog):
    caplog.set_level(logging.INFO)
    lookup = static.StaticLookup(lambda: parse(CLOUD.encode(), 'f.yaml'))
    for _ in range(3):
        lookup.find(Source('10.1.1.1', router_id='r1'), Deadline.after(1))
    assert len([record for record in caplog.records if 'port gw has the address' in record.getMessage()]) == 1
