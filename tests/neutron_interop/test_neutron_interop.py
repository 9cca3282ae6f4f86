# SPDX-License-Identifier: Apache-2.0
"""{our namespace proxy, Neutron's haproxy} x {our agent, Neutron's agent}: same responses to the same requests.

For Nova's responses status, type and body are compared; for the agents' own error responses the status. Tests with
Neutron's agent have the marker ``openstack``.
"""

from __future__ import annotations

import http.client
import json

import pytest

from tests.clients.cloud_init_requests import REQUESTS_BY_DATASOURCE
from tests.e2e.conftest import request

ALL_OURS = ('ours', 'ours')
WITH_NEUTRON_AGENT = [('ours', 'neutron'), ('haproxy', 'neutron')]
ALL = [ALL_OURS, ('haproxy', 'ours'), *WITH_NEUTRON_AGENT]
PARAMS = [
    pytest.param(
        combination, id=' and '.join(combination), marks=pytest.mark.openstack if 'neutron' in combination else ()
    )
    for combination in ALL
]
each_combination = pytest.mark.parametrize('combination', PARAMS)
each_other_combination = pytest.mark.parametrize('combination', PARAMS[1:])

META_DATA = '/openstack/latest/meta_data.json'
PASSWORD = '/openstack/2013-04-04/password'
TARGETS = [
    '/', '/openstack', '/openstack/latest', '/openstack/latest/', META_DATA, '/openstack/latest/network_data.json',
    '/openstack/latest/vendor_data.json', PASSWORD, '/latest/meta-data/', '/ec2', '//latest//meta-data',
    '/latest/meta-data/hostname?x=y',
]  # fmt: skip


def without_random_seed(body):
    """The body without random_seed, which differs each time."""
    try:
        document = json.loads(body)
    except ValueError:
        return body
    if isinstance(document, dict):
        document.pop('random_seed', None)
    return document


@pytest.fixture
def send(proxy_port):
    """Sends a request from 127.0.0.1 or another address through a combination: (status, type, body)."""

    def do(combination, method, target, *, kind='router', body=None, address='127.0.0.1', headers=None):
        port = proxy_port(*combination, kind)
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30, source_address=(address, 0))
        headers = {'Accept': '*/*', **(headers or {})}
        status, response_headers, content = request(connection, method, target, headers, body)
        return status, response_headers.get('content-type'), without_random_seed(content)

    return do


@each_other_combination
@pytest.mark.parametrize('request_list', [*REQUESTS_BY_DATASOURCE, 'more'])
def test_same_requests_get_the_same_responses(send, combination, request_list):
    targets = TARGETS if request_list == 'more' else REQUESTS_BY_DATASOURCE[request_list]
    results = [(target, send(combination, 'GET', target)) for target in targets]
    for target, (status, kind, body) in results:
        expected = send(ALL_OURS, 'GET', target)
        if expected[0] == 200:
            assert (target, status, kind, body) == (target, *expected)
        else:
            assert (target, status) == (target, expected[0])
    assert [status for _, (status, _, _) in results].count(200) > len(targets) / 2


@each_other_combination
def test_network_id_works_like_router_id(send, combination):
    status, _, document = send(combination, 'GET', META_DATA, kind='network')
    assert (status, document['uuid']) == (200, 'instance-a')
    assert send(ALL_OURS, 'GET', META_DATA, kind='network')[2] == document


@each_combination
def test_address_without_port_gets_404(send, combination):
    assert send(combination, 'GET', META_DATA, address='127.0.0.2')[0] == 404


@each_combination
@pytest.mark.parametrize('header', ['X-Neutron-Network-ID', 'X-Neutron-Router-ID'])
def test_forged_network_or_router_header_is_ignored(send, combination, header):
    status, _, document = send(combination, 'GET', META_DATA, headers={header: 'network-b'})
    assert (status, document['uuid']) == (200, 'instance-a')


# Not for haproxy with Neutron's agent: haproxy may send the body after the header in a packet of its own, and
# Neutron's agent then sends Nova a request without body.
@pytest.mark.parametrize('combination', [param for param in PARAMS if 'ours' in param.values[0]])
def test_password_that_is_too_long_is_rejected(send, combination):
    assert send(combination, 'POST', PASSWORD, body=b'x' * 1021)[0] == 400


@pytest.mark.openstack
def test_password_set_through_one_combination_is_read_through_all(send):
    chosen = b'encrypted' * 100
    assert send(WITH_NEUTRON_AGENT[0], 'POST', PASSWORD, body=chosen)[0] == 200
    for combination in ALL:
        assert send(combination, 'GET', PASSWORD) == (200, 'text/html; charset=UTF-8', chosen)
        if 'ours' in combination:
            assert send(combination, 'POST', PASSWORD, body=b'another')[0] == 409
