# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from metadata_wsgi.inventory import parse
from metadata_wsgi.metadata_service import openstack
from metadata_wsgi.metadata_service.network import network_data
from tests.unit.metadata_service.cloud import BARE, FULL

KEYS = ['uuid', 'meta', 'public_keys', 'keys', 'hostname', 'name', 'launch_index', 'availability_zone']
GRIZZLY = ['meta_data.json', 'user_data', 'password']
HAVANA = [*GRIZZLY, 'vendor_data.json']
LIBERTY = [*HAVANA, 'network_data.json']
NEWTON = [*LIBERTY, 'vendor_data2.json']


def find(instance, *tokens):
    return openstack.find(instance, tokens, lambda count: b'r' * count)


@pytest.mark.parametrize(
    ('version', 'files', 'keys'),
    [
        ('2012-08-10', ['meta_data.json', 'user_data'], KEYS),
        ('2013-04-04', GRIZZLY, [*KEYS, 'random_seed']),
        ('2013-10-17', HAVANA, [*KEYS, 'random_seed']),
        ('2015-10-15', LIBERTY, [*KEYS, 'random_seed', 'project_id']),
        ('2016-06-30', LIBERTY, [*KEYS, 'random_seed', 'project_id', 'devices']),
        ('2016-10-06', NEWTON, [*KEYS, 'random_seed', 'project_id', 'devices']),
        ('2017-02-22', NEWTON, [*KEYS, 'random_seed', 'project_id', 'devices']),
        ('2018-08-27', NEWTON, [*KEYS, 'random_seed', 'project_id', 'devices']),
        ('2020-10-14', NEWTON, [*KEYS, 'random_seed', 'project_id', 'devices', 'dedicated_cpus']),
        ('2025-04-04', NEWTON, [*KEYS, 'random_seed', 'project_id', 'devices', 'dedicated_cpus']),
        ('latest', NEWTON, [*KEYS, 'random_seed', 'project_id', 'devices', 'dedicated_cpus']),
    ],
)
def test_each_version_has_what_nova_has(version, files, keys):
    """Noted from nova 34.0.0, version by version, in its order."""
    assert find(FULL, version) == ('\n'.join(files).encode(), 'text/plain')
    assert list(json.loads(find(FULL, version, 'meta_data.json')[0])) == keys


def test_the_versions():
    body, content_type = find(FULL)
    assert (body[:11], body[-17:], content_type) == (b'2012-08-10\n', b'2025-04-04\nlatest', 'text/plain')
    assert body.count(b'\n') == 10


def test_meta_data():
    body, content_type = find(FULL, 'latest', 'meta_data.json')
    assert content_type == 'application/json'
    assert json.loads(body) == {
        'uuid': 'full',
        'meta': {'role': 'test'},
        'public_keys': {'key-a': 'ssh-ed25519 AAAA a@test', 'key-b': 'ssh-rsa BBBB b@test'},
        'keys': [
            {'name': 'key-a', 'type': 'ssh', 'data': 'ssh-ed25519 AAAA a@test'},
            {'name': 'key-b', 'type': 'ssh', 'data': 'ssh-rsa BBBB b@test'},
        ],
        'hostname': 'vm-full.example.org',
        'name': 'vm-full',
        'launch_index': 0,
        'availability_zone': 'nova',
        'random_seed': 'cnJy' * 170 + 'cnI=',
        'project_id': 'red',
        'devices': [],
        'dedicated_cpus': [],
    }


def test_absent_values_are_left_out_of_meta_data():
    document = json.loads(find(BARE, '2012-08-10', 'meta_data.json')[0])
    assert list(document) == ['uuid', 'hostname', 'name', 'launch_index', 'availability_zone']


def test_random_seed_differs_on_each_request():
    seeds = {json.loads(openstack.find(FULL, ['latest', 'meta_data.json'])[0])['random_seed'] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ('instance', 'tokens', 'answer'),
    [
        (FULL, ['latest', 'user_data'], (b'#cloud-config\n', 'text/plain')),
        (FULL, ['2012-08-10', 'user_data'], (b'#cloud-config\n', 'text/plain')),
        (FULL, ['latest', 'vendor_data.json'], (b'{"cloud-init": "x"}', 'application/json')),
        (
            FULL,
            ['latest', 'vendor_data2.json'],
            (b'{"static": {"cloud-init": "x"}, "dynamic": {"a": 1}}', 'application/json'),
        ),
        (BARE, ['latest', 'vendor_data.json'], (b'{}', 'application/json')),
        (BARE, ['latest', 'vendor_data2.json'], (b'{"static": {}}', 'application/json')),
        (BARE, ['latest', 'user_data'], None),
        (FULL, ['2013-04-04', 'vendor_data.json'], None),
        (FULL, ['2016-06-30', 'vendor_data2.json'], None),
        (FULL, ['latest', 'nonsense'], None),
        (FULL, ['latest', 'content'], None),
        (FULL, ['latest', 'meta_data.json', 'more'], None),
        (FULL, ['1999-01-01'], None),
        (FULL, ['1999-01-01', 'meta_data.json'], None),
        (FULL, ['content', '0000'], None),
        (FULL, [''], None),
    ],
)
def test_content_of_a_path(instance, tokens, answer):
    assert find(instance, *tokens) == answer


def test_absent_user_data_is_not_listed():
    assert b'user_data' not in find(BARE, 'latest')[0]


@pytest.mark.parametrize(
    ('tokens', 'there'),
    [
        (['latest', 'password'], True),
        (['2013-04-04', 'password'], True),
        (['2012-08-10', 'password'], False),
        (['1999-01-01', 'password'], False),
        (['latest'], False),
        (['latest', 'password', 'more'], False),
        ([], False),
    ],
)
def test_path_of_the_password(tokens, there):
    assert openstack.has_password(tokens) is there


def test_the_network_of_an_instance_with_both_families():
    """In the form that nova 34 gives for such an instance, but for the name servers, which its had not."""
    dns = {'type': 'dns', 'address': '10.1.1.1'}
    assert json.loads(find(FULL, '2012-08-10', 'network_data.json')[0]) == {
        'links': [
            {
                'id': 'tap34d94e65-96',
                'vif_id': '34d94e65-960f',
                'type': 'phy',
                'mtu': 1450,
                'ethernet_mac_address': 'fa:16:3e:ea:74:ca',
            }
        ],
        'networks': [
            {
                'id': 'network0',
                'type': 'ipv4',
                'link': 'tap34d94e65-96',
                'ip_address': '10.1.1.2',
                'netmask': '255.255.255.0',
                'routes': [{'network': '0.0.0.0', 'netmask': '0.0.0.0', 'gateway': '10.1.1.1'}],
                'network_id': 'n1',
                'services': [dns],
            },
            {
                'id': 'network1',
                'type': 'ipv6',
                'link': 'tap34d94e65-96',
                'ip_address': '2001:db8:1::2',
                'netmask': 'ffff:ffff:ffff:ffff::',
                'routes': [{'network': '::', 'netmask': '::', 'gateway': '2001:db8:1::1'}],
                'network_id': 'n1',
                'services': [],
            },
        ],
        'services': [dns],
    }


def networks(subnets, address):
    text = f"""\
networks: [{{id: n, subnets: [{subnets}]}}]
ports: [{{id: p, network: n, mac: '52:54:00:00:00:01', addresses: ['{address}'], instance: i}}]
instances: [{{id: i, project: p, name: i}}]
"""
    return network_data(parse(text.encode(), 'f.yaml').instances['i'])['networks']


DHCP4 = {'id': 'network0', 'type': 'ipv4_dhcp', 'link': 'tapp', 'network_id': 'n'}


@pytest.mark.parametrize(
    ('subnets', 'address', 'expected'),
    [
        ('', '10.1.1.2', [DHCP4]),
        ('{cidr: 10.1.1.0/24, dhcp: true}', '10.1.1.2', [DHCP4]),
        ('', '2001:db8::2', [{**DHCP4, 'type': 'ipv6_dhcp'}]),
        ('', 'fe80::2', []),
    ],
)
def test_an_address_without_a_mask_uses_dhcp(subnets, address, expected):
    assert networks(subnets, address) == expected


def test_a_network_without_a_gateway_has_no_route():
    assert networks('{cidr: 10.1.1.0/24}', '10.1.1.2')[0]['routes'] == []


def nulls(value, path='$'):
    """The paths of all nulls in a JSON value."""
    if isinstance(value, dict):
        return [found for key, one in value.items() for found in nulls(one, f'{path}.{key}')]
    if isinstance(value, list):
        return [found for index, one in enumerate(value) for found in nulls(one, f'{path}[{index}]')]
    return [path] if value is None else []


@pytest.mark.parametrize('instance', [FULL, BARE], ids=lambda instance: instance.id)
@pytest.mark.parametrize('name', ['meta_data.json', 'network_data.json', 'vendor_data.json', 'vendor_data2.json'])
def test_no_document_has_a_null(instance, name):
    """Guests end their set-up at "mtu": null. Nova always sends a number; a key without a value is left out here."""
    body, _ = openstack.find(instance, ('latest', name))
    assert nulls(json.loads(body)) == []
