# SPDX-License-Identifier: Apache-2.0
import ipaddress

import pytest
import webtest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.filters.header_source import HeaderSourceFilter
from metadata_wsgi.pipeline import environ_keys

ROUTER = 'd9c3b6e4-5d3c-4b1e-9c3e-0a1b2c3d4e5f'


class RecordingApp:
    """An app that records its environ."""

    def __init__(self):
        self.environ = None

    def __call__(self, environ, start_response):
        self.environ = environ
        start_response('200 OK', [('Content-Length', '0'), ('Content-Type', 'text/plain')])
        return []


def get(headers, prefix='X-Quantum'):
    """The response, and the environ of the next app (None if it was not called)."""
    seen = RecordingApp()
    response = webtest.TestApp(HeaderSourceFilter(seen, prefix=prefix)).get('/', headers=headers, expect_errors=True)
    return response, seen.environ


def test_an_address_behind_a_router():
    _, environ = get({'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': ROUTER})
    assert environ[environ_keys.SOURCE] == environ_keys.Source('10.1.1.2', router_id=ROUTER)


@pytest.mark.parametrize(
    ('extra', 'forwarded'),
    [({}, False), ({'X-Metadata-Guest-Forwarded': '1'}, True), ({'Forwarded': 'for=10.0.0.9'}, True)],
    ids=['none', 'our namespace proxy', 'haproxy'],
)
def test_a_forwarding_header_of_the_client_is_noted(extra, forwarded):
    _, environ = get({'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': ROUTER, **extra})
    assert environ[environ_keys.CLIENT_IS_PROXY] is forwarded
    assert not any(key.startswith('HTTP_X_METADATA') for key in environ)


def test_an_address_in_an_isolated_network():
    _, environ = get({'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Network-ID': 'n1'})
    assert environ[environ_keys.SOURCE] == environ_keys.Source('10.1.1.2', network_id='n1')


@pytest.mark.parametrize('prefix', ['X-Neutron', 'x-neutron', 'X-OVN'])
def test_the_trusted_prefix_is_the_operators_choice(prefix):
    _, environ = get({'X-Forwarded-For': '10.1.1.2', f'{prefix}-Network-ID': 'n1'}, prefix)
    assert environ[environ_keys.SOURCE] == environ_keys.Source('10.1.1.2', network_id='n1')


@pytest.mark.parametrize(
    ('headers', 'sentence'),
    [
        ({'X-Quantum-Router-ID': 'r'}, b'No client address.\n'),
        ({'X-Forwarded-For': '10.1.1.2'}, b'Neither a router id nor a network id.\n'),
        (
            {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'r', 'X-Quantum-Network-ID': 'n'},
            b'Both a router id and a network id.\n',
        ),
        (
            {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': '', 'X-Quantum-Network-ID': 'n'},
            b'Both a router id and a network id.\n',
        ),
        ({'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'r1,r2'}, b'An invalid id.\n'),
        ({'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'r&fields=x'}, b'An invalid id.\n'),
        ({'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': ''}, b'An invalid id.\n'),
        ({'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'r' * 65}, b'An invalid id.\n'),
        (
            {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'r', 'X-Neutron-Router-ID': 'other'},
            b'An id under a header prefix that is not trusted.\n',
        ),
        (
            {'X-Forwarded-For': '10.1.1.2', 'X-OVN-Network-ID': 'n'},
            b'An id under a header prefix that is not trusted.\n',
        ),
    ],
)
def test_anything_but_one_address_and_one_id_is_a_400(headers, sentence):
    response, environ = get(headers)
    assert (response.status_int, response.body, environ) == (400, sentence, None)


@pytest.mark.parametrize(
    'address',
    [
        '', 'guest', '10.1.1', '010.1.1.2', '10.1.1.2:80', '[fe80::1]', '10.1.1.2, 10.6.6.6', '10.6.6.6,10.1.1.2',
        '10.1.1.2%eth0', '10.6.6.6%x,10.1.1.2', 'fe80::1%', 'fe80::1%a, 10.1.1.2', '10.1.1.2 10.1.1.3', '1' * 400,
    ],
)  # fmt: skip
def test_an_invalid_address_or_two_are_refused(address):
    response, environ = get({'X-Forwarded-For': address, 'X-Quantum-Router-ID': ROUTER})
    assert (response.status_int, response.body) == (400, b'An invalid client address.\n')
    assert environ is None


@pytest.mark.parametrize(
    ('header', 'canonical'),
    [
        ('FD00:0:0::00A', 'fd00::a'),
        ('::ffff:10.1.1.2', '10.1.1.2'),
        ('fe80::a9fe:1%qr-1a2b3c4d-5e', 'fe80::a9fe:1'),
        (' 10.1.1.2 ', '10.1.1.2'),
    ],
)
def test_the_address_is_canonical(header, canonical):
    """Quantum compares IPv6 addresses as strings."""
    _, environ = get({'X-Forwarded-For': header, 'X-Quantum-Router-ID': ROUTER})
    assert environ[environ_keys.SOURCE].address == canonical


@pytest.mark.parametrize(
    ('address', 'interface'),
    [('fe80::1', 'qr-1a2b3c4d-5e'), ('FE80:0::1', 'qr-1a2b3c4d-5e'), ('2001:db8::1', None), ('10.1.1.2', None)],
)
def test_the_interface_of_a_link_local_address(address, interface):
    headers = {'X-Forwarded-For': address, 'X-Quantum-Router-ID': ROUTER, 'X-Metadata-Interface': 'qr-1a2b3c4d-5e'}
    _, environ = get(headers)
    assert environ[environ_keys.SOURCE].interface == interface
    assert not any(key.startswith('HTTP_X_METADATA') for key in environ)


@pytest.mark.parametrize('interface', ['', 'qr-1,qr-2', 'qr 1', 'q' * 16, '../x'])
def test_an_invalid_interface_is_a_400(interface):
    headers = {'X-Forwarded-For': 'fe80::1', 'X-Quantum-Router-ID': ROUTER, 'X-Metadata-Interface': interface}
    response, environ = get(headers)
    assert (response.status_int, response.body, environ) == (400, b'An invalid interface.\n', None)


def test_a_namespace_proxy_without_the_interface_header_is_served():
    """Neutron's haproxy sends none."""
    _, environ = get({'X-Forwarded-For': 'fe80::1', 'X-Quantum-Router-ID': ROUTER})
    assert environ[environ_keys.SOURCE] == environ_keys.Source('fe80::1', router_id=ROUTER)


def test_reserved_headers_are_deleted():
    _, environ = get(
        {
            'X-Forwarded-For': '10.1.1.2',
            'X-Quantum-Router-ID': ROUTER,
            'X-Instance-ID': 'victim',
            'X-Tenant-ID': 'victim',
            'X-Instance-ID-Signature': '00',
            'X-Metadata-Provider': 'lb',
            'X-Forwarded-Host': 'x',
            'Forwarded': 'for=10.6.6.6',
            'Accept': 'text/plain',
        }
    )
    assert {key for key in environ if key.startswith('HTTP_')} == {'HTTP_ACCEPT', 'HTTP_HOST'}


ADDRESSES = st.one_of(
    st.none(),
    st.ip_addresses().map(str),
    st.lists(st.ip_addresses().map(str), min_size=2, max_size=3).map(', '.join),
    st.tuples(
        st.ip_addresses().map(str), st.sampled_from(['%', ',', ' ', '/', ':']), st.text('%,. 019af:', max_size=9)
    ).map(''.join),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
)
IDS = st.one_of(
    st.none(), st.uuids().map(str), st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
)


@given(ADDRESSES, IDS, IDS, IDS)
def test_a_source_has_exactly_one_valid_address_and_one_id(address, router_id, network_id, other_id):
    headers = {
        'HTTP_X_FORWARDED_FOR': address,
        'HTTP_X_QUANTUM_ROUTER_ID': router_id,
        'HTTP_X_QUANTUM_NETWORK_ID': network_id,
        'HTTP_X_NEUTRON_ROUTER_ID': other_id,
    }
    environ = {'REQUEST_METHOD': 'GET', **{key: value for key, value in headers.items() if value is not None}}
    seen = RecordingApp()
    HeaderSourceFilter(seen, prefix='X-Quantum')(environ, lambda status, headers, exc_info=None: lambda data: None)
    if seen.environ is None:
        return
    source = seen.environ[environ_keys.SOURCE]
    assert ',' not in address
    assert str(ipaddress.ip_address(source.address)) == source.address
    assert [router_id, network_id].count(None) == 1
    assert other_id is None
    assert {source.router_id, source.network_id} == {router_id, network_id}
