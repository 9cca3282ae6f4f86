# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.filters.socket_source import filter_factory
from metadata_wsgi.pipeline import environ_keys


def next_sees(environ):
    """The environ that the next filter saw, None where it was not called, and the status that was said."""
    seen, said = [], []
    app = filter_factory({})(lambda e, s: seen.append(dict(e)))
    app({'REQUEST_METHOD': 'GET', **environ}, lambda status, headers, exc_info=None: said.append(status))
    return (seen[0] if seen else None), said


@pytest.mark.parametrize(
    ('namespace', 'peer', 'source'),
    [
        (environ_keys.Namespace(router_id='r1'), '10.1.1.2', environ_keys.Source('10.1.1.2', router_id='r1')),
        (environ_keys.Namespace(network_id='n1'), '::ffff:10.1.1.2', environ_keys.Source('10.1.1.2', network_id='n1')),
        (environ_keys.Namespace(router_id='r1'), 'FE80::1%qr-1', environ_keys.Source('fe80::1', router_id='r1')),
    ],
)
def test_who_asks_is_told_by_the_socket(namespace, peer, source):
    environ, _ = next_sees({environ_keys.NAMESPACE: namespace, 'REMOTE_ADDR': peer})
    assert environ[environ_keys.SOURCE] == source


def test_what_a_guest_says_of_itself_goes_no_further():
    forged = {'HTTP_X_FORWARDED_FOR': '10.6.6.6', 'HTTP_X_QUANTUM_ROUTER_ID': 'r2', 'HTTP_X_INSTANCE_ID': 'i2'}
    came = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='r1'), 'REMOTE_ADDR': '10.1.1.2'}
    environ, _ = next_sees({**came, 'HTTP_ACCEPT': '*/*', **forged})
    assert {key for key in environ if key.startswith('HTTP_')} == {'HTTP_ACCEPT'}
    assert environ[environ_keys.SOURCE].address == '10.1.1.2'


@pytest.mark.parametrize(
    ('key', 'forwarded'), [('HTTP_ACCEPT', False), ('HTTP_X_FORWARDED_FOR', True), ('HTTP_FORWARDED', True)]
)
def test_whether_the_guest_said_for_whom_it_asks_is_kept(key, forwarded):
    came = {environ_keys.NAMESPACE: environ_keys.Namespace(router_id='r1'), 'REMOTE_ADDR': '10.1.1.2', key: 'x'}
    assert next_sees(came)[0][environ_keys.CLIENT_IS_PROXY] is forwarded


def test_what_came_in_on_the_host_is_refused():
    environ, said = next_sees({'REMOTE_ADDR': '10.1.1.2'})
    assert (environ, said) == (None, ['400 Bad Request'])
