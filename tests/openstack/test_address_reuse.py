# SPDX-License-Identifier: Apache-2.0
"""Address reuse: the new instance gets the metadata of the old one for no longer than the cache's bound."""

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
"""Longer than any cache here keeps a lookup."""


@pytest.fixture
def ports(openstack, seed):
    """A client of Neutron; no port has the address before and after the test."""
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
    """The shipped one, and where there is a filter of that name, with it before ``instance``."""
    text = Path(SHIPPED).read_text()
    if request.param == 'with a cache':
        if CACHE not in entry_points(group='paste.filter_factory').names:
            pytest.skip('there is no filter of that name')
        text = text.replace('header_source instance ', f' source {CACHE} instance ')
        if f'[filter:{CACHE}]' not in text:
            text += f'\n[filter:{CACHE}]\nuse = egg:metadata_wsgi#{CACHE}\n'
    path = tmp_path / 'api-paste.ini'
    path.write_text(text)
    return path


def test_a_reused_address_gets_the_metadata_of_the_new_instance(host, seed, ports, paste_file):
    first, second = seed['first'], seed['second']
    # Ports have a MAC of their own; the guest in the namespace stands for one after the other.
    port = make_port(ports, first)
    host.serve(host.grizzly(api_paste_config=paste_file))
    assert uuid_of(host.curl('first', META_DATA)) == first.instance_id
    ports.neutron('DELETE', f'ports/{port}')
    make_port(ports, second)
    received = []
    give_up_at = time.monotonic() + BOUND_S
    while uuid_of(host.curl('first', META_DATA)) != second.instance_id:
        assert time.monotonic() < give_up_at, received
    received += [uuid_of(host.curl('first', META_DATA)) for _ in range(5)]
    assert set(received) == {second.instance_id}
    assert host.curl('first', '/openstack/latest/user_data').body == second.user_data


def test_a_released_address_is_a_404_until_another_instance_has_it(host, seed, ports, paste_file):
    host.serve(host.grizzly(api_paste_config=paste_file))
    assert host.curl('first', META_DATA).status == 404
    make_port(ports, seed['second'])
    give_up_at = time.monotonic() + BOUND_S
    while (answer := host.curl('first', META_DATA)).status == 404:
        assert time.monotonic() < give_up_at
    assert uuid_of(answer) == seed['second'].instance_id


def uuid_of(answer):
    assert answer.status == 200, answer
    with suppress(ValueError):
        return json.loads(answer.body)['uuid']
    return answer.body
