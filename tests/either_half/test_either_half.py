# SPDX-License-Identifier: Apache-2.0
"""{our namespace proxy, Neutron's haproxy} x {our agent, Neutron's agent}: the same answers to the same requests.

What is compared: status, type and bytes of what Nova says; of what an agent says itself, the status. What needs
Neutron's agent runs with the other tests that need an OpenStack.
"""

from __future__ import annotations

import http.client
import json

import pytest

from tests.clients.crawls import CRAWLS
from tests.e2e.conftest import request

OURS = ('ours', 'ours')
NEUTRONS = [('ours', 'neutron'), ('haproxy', 'neutron')]
ALL = [OURS, ('haproxy', 'ours'), *NEUTRONS]
PARAMS = [
    pytest.param(
        combination, id=' and '.join(combination), marks=pytest.mark.openstack if 'neutron' in combination else ()
    )
    for combination in ALL
]
each = pytest.mark.parametrize('combination', PARAMS)
each_other = pytest.mark.parametrize('combination', PARAMS[1:])

META_DATA = '/openstack/latest/meta_data.json'
PASSWORD = '/openstack/2013-04-04/password'
TARGETS = [
    '/', '/openstack', '/openstack/latest', '/openstack/latest/', META_DATA, '/openstack/latest/network_data.json',
    '/openstack/latest/vendor_data.json', PASSWORD, '/latest/meta-data/', '/ec2', '//latest//meta-data',
    '/latest/meta-data/hostname?x=y',
]  # fmt: skip


def steady(body):
    """The body without random_seed, which is another one each time."""
    try:
        said = json.loads(body)
    except ValueError:
        return body
    if isinstance(said, dict):
        said.pop('random_seed', None)
    return said


@pytest.fixture
def ask(port_of):
    """Asks as 127.0.0.1, or from another address, through a combination: (status, type, body)."""

    def do(combination, method, target, *, kind='router', body=None, address='127.0.0.1', headers=None):
        port = port_of(*combination, kind)
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30, source_address=(address, 0))
        status, said, content = request(connection, method, target, {'Accept': '*/*', **(headers or {})}, body)
        return status, said.get('content-type'), steady(content)

    return do


@each_other
@pytest.mark.parametrize('crawl', [*CRAWLS, 'more'])
def test_the_same_requests_have_the_same_answers(ask, combination, crawl):
    targets = TARGETS if crawl == 'more' else CRAWLS[crawl]
    heard = [(target, ask(combination, 'GET', target)) for target in targets]
    for target, (status, kind, body) in heard:
        expected = ask(OURS, 'GET', target)
        if expected[0] == 200:
            assert (target, status, kind, body) == (target, *expected)
        else:
            assert (target, status) == (target, expected[0])
    assert [status for _, (status, _, _) in heard].count(200) > len(targets) / 2


@each_other
def test_a_network_is_as_good_as_a_router(ask, combination):
    status, _, said = ask(combination, 'GET', META_DATA, kind='network')
    assert (status, said['uuid']) == (200, 'instance-a')
    assert ask(OURS, 'GET', META_DATA, kind='network')[2] == said


@each
def test_who_has_no_port_hears_404(ask, combination):
    assert ask(combination, 'GET', META_DATA, address='127.0.0.2')[0] == 404


@each
@pytest.mark.parametrize('header', ['X-Neutron-Network-ID', 'X-Neutron-Router-ID'])
def test_a_guest_that_names_a_network_or_router_is_not_believed(ask, combination, header):
    status, _, said = ask(combination, 'GET', META_DATA, headers={header: 'network-b'})
    assert (status, said['uuid']) == (200, 'instance-a')


# Without the two that are not ours: haproxy may send a body behind its head, and Neutron's agent then asks Nova
# without one.
@pytest.mark.parametrize('combination', [param for param in PARAMS if 'ours' in param.values[0]])
def test_a_password_that_is_too_long_is_refused(ask, combination):
    assert ask(combination, 'POST', PASSWORD, body=b'x' * 1021)[0] == 400


@pytest.mark.openstack
def test_a_password_is_set_through_one_and_seen_through_all(ask):
    chosen = b'encrypted' * 100
    assert ask(NEUTRONS[0], 'POST', PASSWORD, body=chosen)[0] == 200
    for combination in ALL:
        assert ask(combination, 'GET', PASSWORD) == (200, 'text/html; charset=UTF-8', chosen)
        if 'ours' in combination:
            assert ask(combination, 'POST', PASSWORD, body=b'another')[0] == 409
