# SPDX-License-Identifier: Apache-2.0
"""cloud-init boots completely while Nova fails: the agent retries.

Debian's cloud-init 22.4.2 does not repeat a request that gets an error status. It boots without user-data if the
request for user-data fails, and without metadata if the request for /openstack or meta_data.json fails. So a complete
boot shows that the agent has retried the request.
"""

from __future__ import annotations

import pytest

from tests.clients.boot_table import Row
from tests.clients.cloud_init import run_boot
from tests.clients.cloud_init_requests import REQUESTS_BY_DATASOURCE
from tests.clients.conftest import INSTANCE, KEY, MAC, NETWORK, PORT, PROJECT
from tests.clients.named_faults import FAULTS, FAULTS_FOR_EACH_DURATION, inject, nightly

pytestmark = [pytest.mark.netns, pytest.mark.cloudinit, pytest.mark.not_traced]

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


def request_number(targets, number):
    """Matches request ``number`` of a boot without faults, and its retries."""
    return lambda seen: seen.number >= number and seen.target == targets[number]


def without_ids(tree):
    """``tree`` without the EC2 ids, which the service in Nova's place derives from the instance id."""
    return {**tree, **{name: tree[name][:2] + 'ANY' for name in ('instance-id', 'reservation-id')}}


@pytest.fixture
def boots(metadata_path, tmp_path):
    """Boots the guest with a datasource."""

    def start(datasource):
        return run_boot(metadata_path.guest.namespace, datasource, tmp_path / 'root')

    return start


@pytest.fixture
def boot_with_fault(boots, nova, table, boots_without_faults, metadata_path):
    """Boots with a fault, adds a table row, and fails unless the result equals that of a boot without faults."""

    def run(datasource, number, name, duration='once'):
        targets = REQUESTS_BY_DATASOURCE[datasource]
        inject(nova, name, duration, request_number(targets, number))
        booted = boots(datasource)
        complete = booted == boots_without_faults[datasource]
        table.add(Row(datasource, 'Nova', name, duration, targets[number], complete, booted.seconds))
        assert any(seen.fault_injected for seen in nova.requests), 'no request got the fault'
        assert booted == boots_without_faults[datasource], f'{booted.log}\n{metadata_path.log_text()}'

    return run


def fault_cases(datasource, numbers, names=FAULTS):
    """(datasource, number of the request, fault), with readable test ids."""
    return [
        pytest.param(
            datasource, number, name, id=f'{datasource}-{number}-{REQUESTS_BY_DATASOURCE[datasource][number]}-{name}'
        )
        for number in numbers
        for name in names
    ]


def test_openstack_boot_without_faults(boots, nova):
    booted = boots('OpenStack')
    assert booted.platform == 'openstack', booted.log
    assert booted.user_data == b'#cloud-config\n# for web\n'
    assert (booted.vendor_data, booted.vendor_data2) == (
        b'#cloud-config\n# of the vendor\n',
        b'#cloud-config\n# of another vendor\n',
    )
    crawled = booted.crawled
    assert crawled['meta_data'] == {
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
    assert crawled['network_json']['links'] == [
        {'id': f'tap{PORT[:11]}', 'vif_id': PORT, 'type': 'phy', 'mtu': 1450, 'ethernet_mac_address': MAC}
    ]
    assert [(net['network_id'], net['ip_address']) for net in crawled['network_json']['networks']] == [
        (NETWORK, '10.1.1.2')
    ]
    assert without_ids(crawled['ec2_metadata']) == TREE


def test_ec2_boot_without_faults(boots, nova):
    booted = boots('Ec2')
    assert booted.platform == 'ec2', booted.log
    assert booted.user_data == b'#cloud-config\n# for web\n'
    assert booted.crawled['_metadata_api_version'] == '2009-04-04'
    assert without_ids(booted.crawled['meta-data']) == TREE


@pytest.mark.parametrize('datasource', REQUESTS_BY_DATASOURCE)
def test_nova_receives_exactly_the_guests_requests(boots, nova, datasource):
    """No request is added, lost or sent twice."""
    boots(datasource)
    assert nova.targets() == [f'GET {target}' for target in REQUESTS_BY_DATASOURCE[datasource]]
    assert len(nova.targets()) == {'OpenStack': 28, 'Ec2': 26}[datasource]


@pytest.mark.parametrize(
    ('datasource', 'number', 'name'),
    [
        *fault_cases('OpenStack', (0, 3)),
        *fault_cases('Ec2', (4,)),
        *fault_cases('Ec2', (0, 1, 5), ('500', 'cut mid-body')),
    ],
)
def test_retry_after_one_nova_fault(boot_with_fault, datasource, number, name):
    boot_with_fault(datasource, number, name)


@pytest.mark.parametrize(
    ('datasource', 'number', 'name', 'duration'),
    [
        # After two timeouts too little time is left on a busy machine: 'hanging, twice' is in the nightly run.
        *(
            pytest.param(*case.values, 'twice', id=f'{case.id}-twice')
            for case in fault_cases('OpenStack', (2,), [name for name in FAULTS if name != 'hanging'])
        ),
        *(
            pytest.param(*case.values, '5 s', id=f'{case.id}-5-s')
            for case in fault_cases('OpenStack', (2,), ('500', 'refused', 'hanging', 'cut mid-body'))
            + fault_cases('Ec2', (4,), ('503',))
        ),
    ],
)
def test_retry_after_longer_nova_faults(boot_with_fault, datasource, number, name, duration):
    boot_with_fault(datasource, number, name, duration)


@pytest.mark.parametrize(
    ('datasource', 'number', 'name', 'duration'),
    nightly(
        (name, number, *how)
        for name in REQUESTS_BY_DATASOURCE
        for number in range(len(REQUESTS_BY_DATASOURCE[name]))
        for how in FAULTS_FOR_EACH_DURATION
    ),
)
def test_retry_after_nova_fault_at_any_request(boot_with_fault, datasource, number, name, duration):
    boot_with_fault(datasource, number, name, duration)
