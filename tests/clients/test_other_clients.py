# SPDX-License-Identifier: Apache-2.0
"""The requests of cloudbase-init, Ignition and Afterburn get the responses that each of them expects.

The requests and expectations were read in their sources; the programs themselves do not run.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.clients.conftest import BARE, BARE_ADDRESS, INSTANCE, KEY
from tests.clients.metadata_path import METADATA_V6

pytestmark = [pytest.mark.netns, pytest.mark.not_traced]

PASSWORD = '/openstack/2013-04-04/password'
WINDOWS = {'User-Agent': 'cloudbase-init/1.1', 'Accept-Encoding': 'gzip, deflate', 'Accept': '*/*'}
IGNITION = {'User-Agent': 'Ignition/2.20', 'Accept-Encoding': 'identity'}
IGNITION['Accept'] = 'application/vnd.coreos.ignition+json;version=3.5.0, */*;q=0.1'
AFTERBURN = {'Accept': '*/*'}


@pytest.fixture
def send(guest, nova):
    """Sends a request from inside the guest as one of the programs: (status, Content-Type, body)."""

    def do(method, target, headers, body=None, **more):
        status, headers, content = guest.request(method, target, headers=headers, body=body, **more)
        return status, headers.get_content_type(), content

    return do


def test_cloudbase_init_sets_the_password_once(send, nova):
    """It reads first; an empty body means "no password is set". The encrypted password may have Nova's maximum."""
    encrypted = bytes(range(256)) * 3 + b'=' * 252
    assert len(encrypted) == 1020
    assert send('GET', '/', WINDOWS)[0] == 200
    assert json.loads(send('GET', '/openstack/latest/meta_data.json', WINDOWS)[2])['uuid'] == INSTANCE
    assert send('GET', '/openstack/2013-04-04/meta_data.json', WINDOWS)[:2] == (200, 'application/json')
    assert send('GET', '/openstack/latest/user_data', WINDOWS)[2] == b'#cloud-config\n# for web\n'
    assert send('GET', '/openstack/latest/network_data.json', WINDOWS)[0] == 200
    assert send('GET', PASSWORD, WINDOWS) == (200, 'text/html', b'')
    assert send('POST', PASSWORD, WINDOWS, encrypted) == (200, 'text/html', b'')
    assert send('GET', PASSWORD, WINDOWS) == (200, 'text/html', encrypted)
    assert send('POST', PASSWORD, WINDOWS, b'another')[0] == 409
    assert send('GET', PASSWORD, WINDOWS)[2] == encrypted
    assert nova.targets().count(f'POST {PASSWORD}') == 2


def test_password_that_is_too_long_is_rejected(send, nova):
    def as_bare(*words):
        return send(*words, address=BARE_ADDRESS)

    assert as_bare('POST', PASSWORD, WINDOWS, b'x' * 1021)[0] == 400
    assert as_bare('GET', PASSWORD, WINDOWS)[2] == b''
    assert as_bare('POST', PASSWORD, WINDOWS, b'x' * 1020)[0] == 200
    assert as_bare('GET', PASSWORD, WINDOWS)[2] == b'x' * 1020
    assert [len(seen.body) for seen in nova.requests if seen.method == 'POST'] == [1021, 1020]


def test_ignition_reads_its_config(send):
    assert send('GET', '/openstack/latest/user_data', IGNITION)[::2] == (200, b'#cloud-config\n# for web\n')


@pytest.mark.skipif(not os.path.exists('/proc/net/if_inet6'), reason='this kernel has no IPv6')
def test_ignition_reads_its_config_over_ipv6_link_local(send, metadata_path):
    """It sends both requests at once and uses the first response, even an error."""
    metadata_path.wait_until(metadata_path.guest.link_local_is_ready, "the guest's own address")
    over_v6 = send('GET', '/openstack/latest/user_data', IGNITION, host=METADATA_V6)
    assert over_v6[::2] == (200, b'#cloud-config\n# for web\n')


def test_ignition_gets_404_without_user_data(send):
    """It takes 404 as "no config" and retries forever after a 500."""
    assert send('GET', '/openstack/latest/user_data', IGNITION, address=BARE_ADDRESS)[0] == 404


def test_afterburn_reads_its_attributes(send):
    headers = json.loads(send('GET', '/openstack/2012-08-10/meta_data.json', AFTERBURN)[2])
    assert (headers['uuid'], headers['public_keys']) == (INSTANCE, {'admin': KEY})
    names = ('hostname', 'local-ipv4', 'public-ipv4', 'public-keys', 'public-keys/0/openssh-key')
    found = {name: send('GET', f'/latest/meta-data/{name}', AFTERBURN)[::2] for name in names}
    assert found == {
        'hostname': (200, b'web'),
        'local-ipv4': (200, b'10.1.1.2'),
        'public-ipv4': (200, b''),
        'public-keys': (200, b'0=admin'),
        'public-keys/0/openssh-key': (200, KEY.encode()),
    }
    for name, begins in (('instance-id', b'i-'), ('instance-type', b'')):
        status, _, body = send('GET', f'/latest/meta-data/{name}', AFTERBURN)
        assert status == 200
        assert body.startswith(begins)


def test_afterburn_gets_404_without_ssh_keys(send):
    """It takes a 404 as an attribute that is not set."""
    headers = json.loads(send('GET', '/openstack/2012-08-10/meta_data.json', AFTERBURN, address=BARE_ADDRESS)[2])
    assert headers['uuid'] == BARE
    assert send('GET', '/latest/meta-data/public-keys', AFTERBURN, address=BARE_ADDRESS)[0] == 404
