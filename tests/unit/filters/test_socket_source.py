# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.filters.socket_source import filter_factory
from metadata_wsgi.pipeline import environ_keys


def call(environ):
    """The environ of the next app (None if it was not called), and the statuses of responses."""
    seen, statuses = [], []
    app = filter_factory({})(lambda e, s: seen.append(dict(e)))
    app({'REQUEST_METHOD': 'GET', **environ}, lambda status, headers, exc_info=None: statuses.append(status))
    return (seen[0] if seen else None), statuses


@pytest.mark.parametrize(
    ('namespace', 'peer', 'source'),
    [
        (environ_keys.Namespace(router_id='r1'), '10.1.1.2', environ_keys.Source('10.1.1.2', router_id='r1')),
        (environ_keys.Namespace(network_id='n1'), '::ffff:10.1.1.2', environ_keys.Source('10.1.1.2', network_id='n1')),
        (
            environ_keys.Namespace(router_id='r1'),
            'FE80::1%qr-1',
            environ_keys.Source('fe80::1', router_id='r1', interface='qr-1'),
        ),
        (
            environ_keys.Namespace(router_id='r1'),
            '2001:db8::1%qr-1',
            environ_keys.Source('2001:db8::1', router_id='r1'),
        ),
    ],
)
def test_the_source_is_the_namespace_and_the_peer_address(namespace, peer, source):
    environ, _ = call({environ_keys.NAMESPACE: namespace, 'REMOTE_ADDR': peer})
    assert environ[environ_keys.SOURCE] == source


def test_reserved_headers_are_deleted():
    forged = {'HTTP_X_FORWARDED_FOR': '10.6.6.6', 'HTTP_X_QUANTUM_ROUTER_ID': 'r2', 'HTTP_X_INSTANCE_ID': 'i2'}
    connection = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='r1'), 'REMOTE_ADDR': '10.1.1.2'}
    environ, _ = call({**connection, 'HTTP_ACCEPT': '*/*', **forged})
    assert {key for key in environ if key.startswith('HTTP_')} == {'HTTP_ACCEPT'}
    assert environ[environ_keys.SOURCE].address == '10.1.1.2'


@pytest.mark.parametrize(
    ('key', 'forwarded'), [('HTTP_ACCEPT', False), ('HTTP_X_FORWARDED_FOR', True), ('HTTP_FORWARDED', True)]
)
def test_a_forwarding_header_of_the_client_is_noted(key, forwarded):
    connection = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='r1'), 'REMOTE_ADDR': '10.1.1.2', key: 'x'}
    assert call(connection)[0][environ_keys.CLIENT_IS_PROXY] is forwarded


def test_a_socket_outside_a_namespace_is_a_400():
    environ, statuses = call({'REMOTE_ADDR': '10.1.1.2'})
    assert (environ, statuses) == (None, ['400 Bad Request'])


def test_a_link_local_address_without_its_interface_is_a_400():
    """It is unique on its link only, and a router has several."""
    connection = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='r1'), 'REMOTE_ADDR': 'fe80::1'}
    assert call(connection) == (None, ['400 Bad Request'])
