# SPDX-License-Identifier: Apache-2.0
"""What cloudbase-init, Ignition and Afterburn ask for, asked in a guest, answered as each of them expects it.

Their requests and what they make of the answers are noted in their sources; the programs are not run.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.clients.conftest import BARE, BARE_ADDRESS, INSTANCE, KEY
from tests.clients.way import METADATA_V6

pytestmark = pytest.mark.netns

PASSWORD = '/openstack/2013-04-04/password'
WINDOWS = {'User-Agent': 'cloudbase-init/1.1', 'Accept-Encoding': 'gzip, deflate', 'Accept': '*/*'}
IGNITION = {'User-Agent': 'Ignition/2.20', 'Accept-Encoding': 'identity'}
IGNITION['Accept'] = 'application/vnd.coreos.ignition+json;version=3.5.0, */*;q=0.1'
AFTERBURN = {'Accept': '*/*'}


@pytest.fixture
def ask(guest, nova):
    """Asks from inside the guest as one of the programs: (status, Content-Type, body)."""

    def do(method, target, headers, body=None, **more):
        status, said, content = guest.ask(method, target, headers=headers, body=body, **more)
        return status, said.get_content_type(), content

    return do


def test_cloudbase_init_sets_the_password_once(ask, nova):
    """It reads first: an empty answer means that none is set. What it posts is encrypted and may fill Nova's limit."""
    encrypted = bytes(range(256)) * 3 + b'=' * 252
    assert len(encrypted) == 1020
    assert ask('GET', '/', WINDOWS)[0] == 200
    assert json.loads(ask('GET', '/openstack/latest/meta_data.json', WINDOWS)[2])['uuid'] == INSTANCE
    assert ask('GET', '/openstack/2013-04-04/meta_data.json', WINDOWS)[:2] == (200, 'application/json')
    assert ask('GET', '/openstack/latest/user_data', WINDOWS)[2] == b'#cloud-config\n# for web\n'
    assert ask('GET', '/openstack/latest/network_data.json', WINDOWS)[0] == 200
    assert ask('GET', PASSWORD, WINDOWS) == (200, 'text/html', b'')
    assert ask('POST', PASSWORD, WINDOWS, encrypted) == (200, 'text/html', b'')
    assert ask('GET', PASSWORD, WINDOWS) == (200, 'text/html', encrypted)
    assert ask('POST', PASSWORD, WINDOWS, b'another')[0] == 409
    assert ask('GET', PASSWORD, WINDOWS)[2] == encrypted
    assert nova.targets().count(f'POST {PASSWORD}') == 2


def test_a_password_that_is_too_long_is_refused_and_sets_nothing(ask, nova):
    def as_bare(*words):
        return ask(*words, address=BARE_ADDRESS)

    assert as_bare('POST', PASSWORD, WINDOWS, b'x' * 1021)[0] == 400
    assert as_bare('GET', PASSWORD, WINDOWS)[2] == b''
    assert as_bare('POST', PASSWORD, WINDOWS, b'x' * 1020)[0] == 200
    assert as_bare('GET', PASSWORD, WINDOWS)[2] == b'x' * 1020
    assert [len(seen.body) for seen in nova.requests if seen.method == 'POST'] == [1021, 1020]


def test_ignition_finds_its_config(ask):
    assert ask('GET', '/openstack/latest/user_data', IGNITION)[::2] == (200, b'#cloud-config\n# for web\n')


@pytest.mark.skipif(not os.path.exists('/proc/net/if_inet6'), reason='this kernel has no IPv6')
def test_ignition_finds_the_same_at_the_link_local_address(ask, way):
    """It asks both at once, and the first answer of either counts, an error too."""
    way.wait(way.guest.has_settled, "the guest's own address")
    over_v6 = ask('GET', '/openstack/latest/user_data', IGNITION, host=METADATA_V6)
    assert over_v6[::2] == (200, b'#cloud-config\n# for web\n')


def test_ignition_boots_bare_where_there_is_no_user_data(ask):
    """404 is its word for "no config"; it would ask for ever after a 500."""
    assert ask('GET', '/openstack/latest/user_data', IGNITION, address=BARE_ADDRESS)[0] == 404


def test_afterburn_finds_its_attributes(ask):
    said = json.loads(ask('GET', '/openstack/2012-08-10/meta_data.json', AFTERBURN)[2])
    assert (said['uuid'], said['public_keys']) == (INSTANCE, {'admin': KEY})
    names = ('hostname', 'local-ipv4', 'public-ipv4', 'public-keys', 'public-keys/0/openssh-key')
    found = {name: ask('GET', f'/latest/meta-data/{name}', AFTERBURN)[::2] for name in names}
    assert found == {
        'hostname': (200, b'web'),
        'local-ipv4': (200, b'10.1.1.2'),
        'public-ipv4': (200, b''),
        'public-keys': (200, b'0=admin'),
        'public-keys/0/openssh-key': (200, KEY.encode()),
    }
    for name, begins in (('instance-id', b'i-'), ('instance-type', b'')):
        status, _, body = ask('GET', f'/latest/meta-data/{name}', AFTERBURN)
        assert status == 200
        assert body.startswith(begins)


def test_afterburn_goes_on_where_there_are_no_keys(ask):
    """It takes a 404 for an attribute that is not set."""
    said = json.loads(ask('GET', '/openstack/2012-08-10/meta_data.json', AFTERBURN, address=BARE_ADDRESS)[2])
    assert said['uuid'] == BARE
    assert ask('GET', '/latest/meta-data/public-keys', AFTERBURN, address=BARE_ADDRESS)[0] == 404
