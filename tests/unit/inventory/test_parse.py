# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - a table of cases is read in rows
import os
import pathlib
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.inventory import Instance, Network, Port, Router, Subnet, parse, read
from metadata_wsgi.inventory.document import MAX_BYTES

SAMPLE = pathlib.Path(__file__).parents[3] / 'etc' / 'inventory.sample.yaml'

GOOD = """\
routers:
- id: r1
  networks: [n1]
networks:
- id: n1
  subnets:
  - cidr: 10.1.1.0/24
    gateway: 10.1.1.1
- id: n2
ports:
- id: p1
  network: n1
  mac: 52:54:00:12:34:56
  addresses: [10.1.1.2]
  instance: i1
  project: red
- id: p2
  network: n1
  mac: 52:54:00:12:34:57
  addresses: [10.1.1.3]
instances:
- id: i1
  project: red
  name: web
  metadata:
    role: web
  user_data: |
    #!/bin/sh
    true
"""


def refusal(text, old='', new=''):
    """The error for ``text`` with ``old`` replaced by ``new``."""
    assert old in text
    with pytest.raises(ConfigError) as raised:
        parse(text.replace(old, new, 1).encode(), 'f.yaml')
    return str(raised.value)


def test_everything_in_a_small_file():
    found = parse(GOOD.encode(), 'f.yaml')
    n1 = Network('n1', 'n1', (Subnet('10.1.1.0/24', '10.1.1.1'),))
    p1 = Port('p1', n1, '52:54:00:12:34:56', ('10.1.1.2',), 'compute:nova', 'i1', 'red')
    assert list(found.routers.values()) == [Router('r1', 'r1', ('n1',))]
    assert list(found.networks.values()) == [n1, Network('n2', 'n2')]
    assert list(found.ports.values()) == [p1, Port('p2', n1, '52:54:00:12:34:57', ('10.1.1.3',), 'network')]
    assert list(found.instances.values()) == [
        Instance(
            id='i1',
            project_id='red',
            name='web',
            hostname='web',
            availability_zone='nova',
            instance_type='unknown',
            image='ami-00000000',
            security_groups=('default',),
            metadata=(('role', 'web'),),
            user_data=b'#!/bin/sh\ntrue\n',
            ports=(p1,),
        )
    ]


@pytest.mark.parametrize(
    ('old', 'new', 'complaint'),
    [
        # not YAML, or not ours
        ('- id: r1\n', '- id: [r1\n', 'f.yaml:3: not YAML: '),
        ('- id: r1\n', '- id: "r1\n', 'f.yaml:'),
        ('routers:', 'router:', 'f.yaml:1: router is not a key of the inventory; did you mean routers?'),
        ('network: n1\n  mac: 52', 'netwrok: n1\n  mac: 52', 'f.yaml:12: netwrok is not a key of a port (p1); did you mean network?'),
        ('  name: web', '  name: web\n  zzz: 1', 'f.yaml:25: zzz is not a key of an instance (i1); the keys are id, project, name, '),
        ('  name: web', '  name: web\n  name: db', 'f.yaml:25: name is twice in an instance'),
        ('  mac: 52:54:00:12:34:56\n', '', 'f.yaml:11: mac is missing from a port (p1)'),
        ('- id: p1\n  network', '- network', 'f.yaml:11: id is missing from a port'),
        ('  project: red\n  name: web', '  name: web', 'f.yaml:22: project is missing from an instance (i1)'),
        # of the wrong kind
        ('networks: [n1]', 'networks: n1', 'f.yaml:3: networks must be a list, not text'),
        ('networks: [n1]', 'networks:', 'f.yaml:3: networks must be a list, not nothing'),
        ('- id: n2', '- n2', 'f.yaml:9: a network must be a mapping of keys to values, not text'),
        ('- id: n2', '- [n2]', 'f.yaml:9: a network must be a mapping of keys to values, not a list'),
        ('name: web', 'name: [web]', 'f.yaml:24: name must be text, not a list'),
        ('name: web', 'name: {a: b}', 'f.yaml:24: name must be text, not a mapping'),
        ('name: web', 'name:', 'f.yaml:24: name has no value'),
        ('name: web', 'name: "a\\nb"', 'f.yaml:24: name must be one line of text'),
        ('name: web', 'name: ""', 'f.yaml:24: name must be one line of text'),
        ('role: web', 'role: [web]', 'f.yaml:26: role must be text, not a list'),
        ('metadata:\n    role: web', 'metadata: [web]', 'f.yaml:25: metadata must be a mapping of keys to values, not a list'),
        ('name: web', 'name: web\n  user_data: !!binary "*"', 'f.yaml:28: user_data is twice'),
        # ids
        ('- id: n2', '- id: n1', 'f.yaml:9: a network with the id n1 is already there'),
        ('- id: p2', '- id: p1', 'f.yaml:17: a port with the id p1 is already there'),
        ('- id: n2', '- id: n/2', 'f.yaml:9: n/2 is not an id: use 1 to 64 letters, digits and dashes'),
        ('- id: n2', '- id: ..', 'f.yaml:9: .. is not an id: '),
        ('networks: [n1]', 'networks: [n1, n3]', 'f.yaml:3: there is no network n3'),
        ('networks: [n1]', 'networks: [n1, n1]', 'f.yaml:3: network n1 is twice in a router (r1)'),
        ('network: n1', 'network: n3', 'f.yaml:12: there is no network n3'),
        ('instance: i1', 'instance: i2', 'f.yaml:15: there is no instance i2'),
        ('  project: red\n- id: p2', '  project: blue\n- id: p2', 'f.yaml:16: project blue of a port (p1) is not the project of its instance, red'),
        # addresses
        ('addresses: [10.1.1.3]', 'addresses: [10.1.1.2]', 'f.yaml:20: 10.1.1.2 is already on network n1, at port p1'),
        ('addresses: [10.1.1.3]', 'addresses: ["::ffff:10.1.1.2"]', 'f.yaml:20: 10.1.1.2 is already on network n1, at port p1'),
        ('addresses: [10.1.1.3]', 'addresses: [10.1.1.3, 10.1.1.3]', 'f.yaml:20: 10.1.1.3 is already on network n1, at port p2'),
        ('12:34:57', '12-34-56', 'f.yaml:19: 52:54:00:12:34:56 is already on network n1, at port p1'),
        ('12:34:57', '12:34', 'f.yaml:19: 52:54:00:12:34 is not a MAC address'),
        ('[10.1.1.2]', '\n  - 10.1.1.2\n  - 010.1.1.4', 'f.yaml:16: 010.1.1.4 is not an address'),
        ('[10.1.1.2]', '[10.1.1.256]', 'f.yaml:14: 10.1.1.256 is not an address'),
        ('[10.1.1.2]', '[fe80::1%eth0]', 'f.yaml:14: fe80::1%eth0 is not an address: leave the zone out'),
        ('[10.1.1.2]', '[10.1.2.2]', 'f.yaml:14: 10.1.2.2 is in no subnet of network n1'),
        ('10.1.1.0/24', '10.1.1.1/24', 'f.yaml:7: 10.1.1.1/24 is not a CIDR: '),
        ('gateway: 10.1.1.1', 'gateway: 10.1.2.1', 'f.yaml:8: gateway 10.1.2.1 is not in 10.1.1.0/24'),
        ('- id: n2', '- id: n2\n  mtu: 67', 'f.yaml:10: mtu 67 must be a number of bytes from 68 to 65535'),
        ('- id: n2', '- id: n2\n  mtu: 1e9', 'f.yaml:10: mtu 1e9 must be a number'),
        ('- id: n2', '- id: n2\n  mtu: 15000000000', 'f.yaml:10: mtu 15000000000 must be a number'),
        ('- id: n2', '- id: n2\n  mtu: 000999999999', 'f.yaml:10: mtu 000999999999 must be a number'),
        ('gateway: 10.1.1.1', 'dhcp: yes', 'f.yaml:8: dhcp must be true or false, not yes'),
        ('instance: i1', 'instance: i1\n  device_owner: network:dhcp', 'f.yaml:16: network:dhcp is not a device_owner of an instance: it must begin with'),
        # bounds
        ('name: web', 'name: web\n  vendor_data: {a: .nan}', 'f.yaml:25: vendor_data cannot be written as JSON'),
        ('name: web', 'name: web\n  vendor_data: {a: 2020-01-01}', 'f.yaml:25: vendor_data cannot be written as JSON'),
        ('name: web', 'name: web\n  vendor_data: {a: !!python/object:os.system x}', 'f.yaml:25: vendor_data: '),
        ('name: web', 'name: web\n  vendor_data: {a: !!bool maybe}', 'f.yaml:25: vendor_data cannot be written as JSON'),
        ('name: web', 'name: web\n  vendor_data: {a: !!timestamp x}', 'f.yaml:25: vendor_data cannot be written as JSON'),
        ('name: web', 'name: web\n  vendor_data: text', 'f.yaml:25: vendor_data must be a mapping of keys to values, not text'),
        ('networks: [n1]', 'networks: &all [n1]\n- id: r2\n  networks: *all', 'f.yaml:5: *all refers to no text above; only text may have aliases'),
        ('name: web', f'name: web\n  vendor_data: {{a: {"[" * 40 + "]" * 40}}}', 'f.yaml:25: nested more than 32 deep'),
    ],
)  # fmt: skip
def test_an_error_is_reported_with_its_line(old, new, complaint):
    assert refusal(GOOD, old, new).startswith(complaint)


@pytest.mark.parametrize(
    ('data', 'complaint'),
    [
        (b'', 'f.yaml:1: the file is empty'),
        (b'# nothing but this\n', 'f.yaml:1: the file is empty'),
        (b'{}', 'f.yaml:1: networks is missing from the inventory'),
        (b'networks: []\nports: []\n', 'f.yaml:1: instances is missing from the inventory'),
        (b'- a\n', 'f.yaml:1: the inventory must be a mapping of keys to values, not a list'),
        (b'networks: []\n# \xff\n', 'f.yaml:2: the file is not UTF-8'),
        (b'networks: []\n# \x00\n', 'f.yaml:2: not YAML: '),
        (b'networks: []\n---\nports: []\n', 'f.yaml:2: not YAML: '),
        (b'networks: *gone\n', 'f.yaml:1: *gone refers to no text above; only text may have aliases'),
        (b'a: &a [*a]\n', 'f.yaml:1: *a refers to no text above; only text may have aliases'),
        (b'#' * (MAX_BYTES + 1), 'f.yaml:1: the file has more than 16777216 bytes'),
        (b'[' * 5000, 'f.yaml:1: nested more than 32 deep'),
        (b'a:\n' + b'- ' * 100000 + b'b', 'f.yaml:2: nested more than 32 deep'),
    ],
    ids=range(13),
)
def test_a_file_that_is_not_an_inventory(data, complaint):
    with pytest.raises(ConfigError) as raised:
        parse(data, 'f.yaml')
    assert str(raised.value).startswith(complaint)


def test_nested_aliases_are_refused_before_they_are_expanded():
    bomb = 'a: &a [x, x]\n' + ''.join(
        f'{b}: &{b} [*{a}, *{a}]\n' for a, b in zip('abcdefghi', 'bcdefghij', strict=True)
    )
    assert refusal(bomb) == 'f.yaml:2: *a refers to no text above; only text may have aliases'


def test_text_is_taken_as_written():
    """YAML reads 52:54:00:12:34:56 as a number of base 60, 0123 as octal, yes as true and 1.0 as a fraction."""
    text = (
        GOOD.replace('id: n2', 'id: 0123')
        .replace('name: web', 'name: yes\n  hostname: 1.0')
        .replace('role: web', 'n: 0x1')
    )
    found = parse(text.encode(), 'f.yaml')
    assert '0123' in found.networks
    assert (found.instances['i1'].name, found.instances['i1'].hostname) == ('yes', '1.0')
    assert found.instances['i1'].metadata == (('n', '0x1'),)


def test_addresses_and_macs_are_canonical():
    text = GOOD.replace('- id: n2', '- id: n2\n  name: two').replace(
        '  network: n1\n  mac: 52:54:00:12:34:56\n  addresses: [10.1.1.2]',
        '  network: n2\n  mac: 52-54-00-AB-CD-EF\n  addresses: [2001:DB8:0::A, "::ffff:10.9.9.9"]',
    )
    port = parse(text.encode(), 'f.yaml').ports['p1']
    assert (port.mac, port.addresses) == ('52:54:00:ab:cd:ef', ('2001:db8::a', '10.9.9.9'))


def test_user_data_may_be_any_bytes():
    text = GOOD.replace('user_data: |\n    #!/bin/sh\n    true', 'user_data: !!binary |\n    H4sI\n    AP/+')
    assert parse(text.encode(), 'f.yaml').instances['i1'].user_data == b'\x1f\x8b\x08\x00\xff\xfe'


def test_user_data_that_is_not_base64():
    text = GOOD.replace('user_data: |\n    #!/bin/sh\n    true', 'user_data: !!binary H4s')
    assert refusal(text).startswith('f.yaml:27: user_data is not base64: ')


def test_a_byte_order_mark_is_no_content():
    assert list(parse(b'\xef\xbb\xbf' + GOOD.encode(), 'f.yaml').instances) == ['i1']


def test_the_sample_shows_two_tenants_at_one_address_and_an_isolated_network():
    found = read(str(SAMPLE))
    red, blue = (router.id for router in found.routers.values())
    isolated = set(found.networks) - {network for router in found.routers.values() for network in router.networks}
    at = [
        found.instance_ports('10.1.1.2', router_id=red),
        found.instance_ports('10.1.1.2', router_id=blue),
        found.instance_ports('10.1.1.2', network_id=isolated.pop()),
    ]
    assert [[port.project_id for port in ports] for ports in at] == [['red'], ['blue'], ['green']]
    assert isolated == set()


@pytest.mark.parametrize('text', ['1970-01-02T00:00:00Z', '1970-01-02', '1970-01-02T01:00:00+01:00'])
def test_creation_time_of_a_port(text):
    port = f"{{id: p, network: n, mac: '52:54:00:00:00:01', created_at: {text}}}"
    assert (
        parse(f'networks: [{{id: n}}]\ninstances: []\nports: [{port}]'.encode(), 'x').ports['p'].created_at_s == 86400.0
    )


def test_an_invalid_time_is_refused():
    port = "{id: p, network: n, mac: '52:54:00:00:00:01', created_at: yesterday}"
    with pytest.raises(ConfigError, match='yesterday is not a time: write it as'):
        parse(f'networks: [{{id: n}}]\ninstances: []\nports: [{port}]'.encode(), 'x')


def test_the_sample_has_every_key():
    """It is the manual, so a key that is read stands there."""
    sample = yaml.safe_load(SAMPLE.read_text())
    written = {kind: {key for entry in entries for key in entry} for kind, entries in sample.items()}
    written['subnets'] = {key for network in sample['networks'] for subnet in network['subnets'] for key in subnet}
    assert written == {
        'routers': {'id', 'name', 'networks'},
        'networks': {'id', 'name', 'mtu', 'subnets'},
        'subnets': {'cidr', 'gateway', 'dns', 'dhcp'},
        'ports': {'id', 'network', 'mac', 'addresses', 'instance', 'project', 'device_owner', 'created_at'},
        'instances': {
            'id', 'project', 'name', 'hostname', 'availability_zone', 'instance_type', 'image', 'security_groups',
            'public_keys', 'metadata', 'user_data', 'vendor_data', 'vendor_data2',
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'reason'), [('gone', 'cannot be read: No such file or directory'), ('.', 'not a regular file')]
)
def test_a_file_that_cannot_be_read(tmp_path, name, reason):
    with pytest.raises(ConfigError) as raised:
        read(str(tmp_path / name))
    assert str(raised.value) == f'inventory = {tmp_path / name}: {reason}'


def test_a_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ConfigError, match='not a regular file'):
        read(str(tmp_path / 'pipe'))


PIECES = [
    *'[]{}|"\'\n#%\t\x85?',
    '- ',
    '  ',
    'id',
    ': ',
    'ports',
    'networks',
    'n1',
    '&a ',
    '*a',
    '!!binary ',
    '!!bool ',
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(''.join), st.integers(0, len(GOOD)))
def test_any_text_is_read_or_refused_with_a_line(scrap, at):
    message = 'f.yaml:0:'
    try:
        parse((GOOD[:at] + scrap + GOOD[at:]).encode(), 'f.yaml')
    except ConfigError as error:
        message = str(error)
    assert re.match(r'f\.yaml:\d+:', message)


@given(st.binary(max_size=40))
def test_any_bytes_are_refused_with_a_line(data):
    with pytest.raises(ConfigError, match=r'\Af\.yaml:\d+: '):
        parse(data, 'f.yaml')
