# SPDX-License-Identifier: Apache-2.0
"""An address is reassigned to another instance, which gets its own metadata within a bounded time."""

import json
import time
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.cloud import SHIPPED
from tests.openstack.seed import ADDRESS, Admin, make_port

pytestmark = [pytest.mark.openstack, pytest.mark.netns]

META_DATA = '/openstack/latest/meta_data.json'
CACHE = 'lookup_cache'
BOUND_S = 60.0
"""Longer than any cache entry of a lookup is valid."""


@pytest.fixture
def ports(openstack, seed):
    """A client of Neutron; the address has no port before and after the test."""
    admin = Admin(openstack.services)

    def free():
        listed = admin.neutron('GET', f'ports?network_id={seed["first"].network_id}&fixed_ips=ip_address%3D{ADDRESS}')
        for port in listed['ports']:
            admin.neutron('DELETE', f'ports/{port["id"]}')

    free()
    yield admin
    free()
    admin.close()


@pytest.fixture(params=['without a cache', 'with a cache'])
def paste_file(request, tmp_path):
    """The shipped paste file, and the same with the lookup cache before ``instance``."""
    text = Path(SHIPPED).read_text()
    if request.param == 'with a cache':
        if CACHE not in entry_points(group='paste.filter_factory').names:
            pytest.skip('there is no filter of that name')
        text = text.replace('header_source instance ', f'header_source {CACHE} instance ')
        if f'[filter:{CACHE}]' not in text:
            text += f'\n[filter:{CACHE}]\nuse = egg:metadata_wsgi#{CACHE}\n'
    path = tmp_path / 'api-paste.ini'
    path.write_text(text)
    return path


def test_reassigned_address_gives_the_new_instances_metadata(host, seed, ports, paste_file):
    first, second = seed['first'], seed['second']
    # Each port has its own MAC; the one guest namespace represents both instances in turn.
    port = make_port(ports, first)
    host.restart_agent(host.grizzly_configuration(metadata_paste_config=paste_file))
    assert uuid_of(host.curl_until_served('first', META_DATA)) == first.instance_id
    ports.neutron('DELETE', f'ports/{port}')
    make_port(ports, second)
    received = []
    deadline = time.monotonic() + BOUND_S
    while uuid_of(host.curl_until_served('first', META_DATA)) != second.instance_id:
        assert time.monotonic() < deadline, received
    received += [uuid_of(host.curl_until_served('first', META_DATA)) for _ in range(5)]
    assert set(received) == {second.instance_id}
    assert host.curl_until_served('first', '/openstack/latest/user_data').body == second.user_data


def test_released_address_gives_404_until_it_is_reassigned(host, seed, ports, paste_file):
    host.restart_agent(host.grizzly_configuration(metadata_paste_config=paste_file))
    assert host.curl_until_served('first', META_DATA).status == 404
    make_port(ports, seed['second'])
    deadline = time.monotonic() + BOUND_S
    while (response := host.curl_until_served('first', META_DATA)).status == 404:
        assert time.monotonic() < deadline
    assert uuid_of(response) == seed['second'].instance_id


def uuid_of(response):
    assert response.status == 200, response
    with suppress(ValueError):
        return json.loads(response.body)['uuid']
    return response.body
