# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud-init boots through the path while Nova fails, and must not notice anything but time.

This release drops user-data after one 500 and gives the datasource up after one 503 on /openstack, so every
boot here that is complete is the path's merit.
"""

from __future__ import annotations

import pytest

from tests.clients.boot import boot
from tests.clients.conftest import INSTANCE, KEY, MAC, NETWORK, PORT, PROJECT
from tests.clients.crawls import CRAWLS
from tests.clients.faults import FAULTS, HOW, nightly, plan
from tests.clients.table import Row

pytestmark = [pytest.mark.netns, pytest.mark.cloudinit]

TREE = {
    'ami-id': 'ami-00000000',
    'ami-launch-index': '0',
    'ami-manifest-path': 'FIXME',
    'block-device-mapping': {'ami': 'vda', 'root': '/dev/vda'},
    'hostname': 'web',
    'instance-action': 'none',
    'instance-id': 'i-ANY',
    'instance-type': 'unknown',
    'local-hostname': 'web',
    'local-ipv4': '10.1.1.2',
    'placement': {'availability-zone': 'nova'},
    'public-hostname': 'web',
    'public-ipv4': '',
    'public-keys': {'admin': KEY},
    'reservation-id': 'r-ANY',
    'security-groups': 'default',
}


def position(crawl, number):
    """The request of that number in an undisturbed crawl, and what is asked again for it."""
    return lambda seen: seen.number >= number and seen.target == crawl[number]


def without_ids(tree):
    """EC2's ids are made of the instance's id by the app in Nova's place; that they are there is all that matters."""
    return {**tree, **{name: tree[name][:2] + 'ANY' for name in ('instance-id', 'reservation-id')}}


@pytest.fixture
def boots(way, tmp_path):
    """Boots the guest with a datasource."""

    def start(datasource):
        return boot(way.guest.namespace, datasource, tmp_path / 'root')

    return start


@pytest.fixture
def survives(boots, nova, table, undisturbed, way):
    """Boots with a fault, writes the row down and fails unless the boot is what it is without the fault."""

    def run(datasource, number, name, lasting='once'):
        crawl = CRAWLS[datasource]
        plan(nova, name, lasting, position(crawl, number))
        booted = boots(datasource)
        complete = booted == undisturbed[datasource]
        table.add(Row(datasource, 'Nova', name, lasting, crawl[number], complete, booted.seconds))
        assert any(seen.failed for seen in nova.requests), 'the fault met no request'
        assert booted == undisturbed[datasource], f'{booted.log}\n{way.said()}'

    return run


def some(datasource, numbers, names=FAULTS):
    """(datasource, request's number, fault), each an id that can be read."""
    return [
        pytest.param(datasource, number, name, id=f'{datasource}-{number}-{CRAWLS[datasource][number]}-{name}')
        for number in numbers
        for name in names
    ]


def test_without_faults_openstack_is_complete(boots, nova):
    booted = boots('OpenStack')
    assert booted.platform == 'openstack', booted.log
    assert booted.user_data == b'#cloud-config\n# for web\n'
    assert (booted.vendor_data, booted.vendor_data2) == (
        b'#cloud-config\n# of the vendor\n',
        b'#cloud-config\n# of another vendor\n',
    )
    told = booted.crawled
    assert told['meta_data'] == {
        'uuid': INSTANCE,
        'instance-id': INSTANCE,
        'project_id': PROJECT,
        'hostname': 'web',
        'local-hostname': 'web',
        'name': 'web',
        'launch_index': 0,
        'availability_zone': 'nova',
        'devices': [],
        'meta': {'role': 'web'},
        'public_keys': {'admin': KEY},
        'keys': [{'name': 'admin', 'type': 'ssh', 'data': KEY}],
    }
    assert told['network_json']['links'] == [
        {'id': f'tap{PORT[:11]}', 'vif_id': PORT, 'type': 'phy', 'mtu': 1450, 'ethernet_mac_address': MAC}
    ]
    assert [(net['network_id'], net['ip_address']) for net in told['network_json']['networks']] == [
        (NETWORK, '10.1.1.2')
    ]
    assert without_ids(told['ec2_metadata']) == TREE


def test_without_faults_ec2_is_complete(boots, nova):
    booted = boots('Ec2')
    assert booted.platform == 'ec2', booted.log
    assert booted.user_data == b'#cloud-config\n# for web\n'
    assert booted.crawled['_metadata_api_version'] == '2009-04-04'
    assert without_ids(booted.crawled['meta-data']) == TREE


@pytest.mark.parametrize('datasource', CRAWLS)
def test_without_faults_nova_gets_exactly_the_guests_requests(boots, nova, datasource):
    """None is added, none is lost, none is sent twice."""
    boots(datasource)
    assert nova.targets() == [f'GET {target}' for target in CRAWLS[datasource]]
    assert len(nova.targets()) == {'OpenStack': 28, 'Ec2': 26}[datasource]


@pytest.mark.parametrize(
    ('datasource', 'number', 'name'),
    [*some('OpenStack', (0, 3)), *some('Ec2', (4,)), *some('Ec2', (0, 1, 5), ('500', 'cut mid-body'))],
)
def test_nova_fails_once(survives, datasource, number, name):
    survives(datasource, number, name)


@pytest.mark.parametrize(
    ('datasource', 'number', 'name', 'lasting'),
    [
        *(pytest.param(*case.values, 'twice', id=f'{case.id}-twice') for case in some('OpenStack', (2,))),
        *(
            pytest.param(*case.values, '5 s', id=f'{case.id}-5-s')
            for case in some('OpenStack', (2,), ('500', 'refused', 'hanging', 'cut mid-body'))
            + some('Ec2', (4,), ('503',))
        ),
    ],
)
def test_nova_fails_for_longer(survives, datasource, number, name, lasting):
    survives(datasource, number, name, lasting)


@pytest.mark.parametrize(
    ('datasource', 'number', 'name', 'lasting'),
    nightly((name, number, *how) for name in CRAWLS for number in range(len(CRAWLS[name])) for how in HOW),
)
def test_nova_fails_anywhere(survives, datasource, number, name, lasting):
    survives(datasource, number, name, lasting)
