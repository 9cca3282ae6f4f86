# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.errors import MaybeSent, NotSent
from metadata_wsgi.http import header_names
from metadata_wsgi.namespace_proxy.app import NamespaceProxyApp
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock, FakeHttpClient
from tests.unit.http.test_header_names import RESERVED, spellings


def send(agent, method='GET', path='/openstack', headers=None, peer='10.1.1.2', body=b'', clock=None, **options):
    clock = clock or FakeClock()
    options = options or {'router_id': 'r1'}
    app = webtest.TestApp(NamespaceProxyApp(agent, clock=clock, sleep=clock.sleep, **options))
    return app.request(
        path, method=method, headers=headers or {}, environ={'REMOTE_ADDR': peer}, body=body, expect_errors=True
    )


def sent_headers(agent, number=0):
    return dict(agent.requests[number].headers)


def test_the_identity_headers_are_set_not_appended():
    agent = FakeHttpClient(200)
    send(agent, headers={'X-Forwarded-For': '10.6.6.6', 'X-Quantum-Router-ID': 'other', 'X-Quantum-Network-ID': 'n'})
    reserved = {name: value for name, value in agent.requests[0].headers if header_names.is_reserved(name)}
    assert reserved.pop('x-openstack-request-id').startswith('req-')
    assert reserved == {
        'x-forwarded-for': '10.1.1.2', 'x-quantum-router-id': 'r1', 'x-metadata-remaining-ms': '8700',
        'x-metadata-guest-forwarded': '1',
    }  # fmt: skip
    assert len([name for name, _ in agent.requests[0].headers if header_names.is_reserved(name)]) == 5


@pytest.mark.parametrize(
    ('peer', 'address', 'interface'),
    [('fe80::1%qr-1a2b3c4d-5e', 'fe80::1', 'qr-1a2b3c4d-5e'), ('2001:db8::1', '2001:db8::1', None)],
)
def test_the_interface_of_a_link_local_client_is_sent_and_not_the_clients_header(peer, address, interface):
    agent = FakeHttpClient(200)
    send(agent, headers={'X-Metadata-Interface': 'qr-other'}, peer=peer)
    headers = sent_headers(agent)
    assert (headers['x-forwarded-for'], headers.get('x-metadata-interface')) == (address, interface)


@pytest.mark.parametrize(
    ('headers', 'flag'),
    [
        ({}, None),
        ({'X-Forwarded-For': '10.6.6.6'}, '1'),
        ({'Forwarded': 'for=10.6.6.6'}, '1'),
        ({'X-Forwarded-For': ''}, '1'),
        ({'X-Forwarded-For': '10.6.6.6', 'Connection': 'X-Forwarded-For'}, '1'),
        ({'X-Metadata-Guest-Forwarded': '0'}, None),
        ({'X-Forwarded-For': '10.6.6.6', 'X-Metadata-Guest-Forwarded': '0'}, '1'),
    ],
)
def test_a_forwarded_header_of_the_client_becomes_a_flag(headers, flag):
    agent = FakeHttpClient(200)
    send(agent, headers=headers)
    assert sent_headers(agent).get('x-metadata-guest-forwarded') == flag


@pytest.mark.parametrize(
    ('options', 'header'),
    [
        ({'router_id': 'r1'}, ('x-quantum-router-id', 'r1')),
        ({'network_id': 'n1'}, ('x-quantum-network-id', 'n1')),
        ({'router_id': 'r1', 'network_id': 'n1'}, ('x-quantum-router-id', 'r1')),
        ({'network_id': 'n1', 'prefix': 'X-Neutron'}, ('x-neutron-network-id', 'n1')),
    ],
)
def test_the_id_header_comes_from_the_options(options, header):
    agent = FakeHttpClient(200)
    send(agent, **options)
    assert header in agent.requests[0].headers


@pytest.mark.parametrize(
    ('namespace', 'header'),
    [
        (environ_keys.Namespace(router_id='r1'), ('x-quantum-router-id', 'r1')),
        (environ_keys.Namespace(network_id='n1'), ('x-quantum-network-id', 'n1')),
    ],
)
def test_without_an_id_the_namespace_of_the_connection_is_used(namespace, header):
    agent = FakeHttpClient(200)
    app = webtest.TestApp(NamespaceProxyApp(agent, clock=FakeClock()))
    app.get('/', extra_environ={environ_keys.NAMESPACE: namespace, 'REMOTE_ADDR': '10.1.1.2'})
    assert header in agent.requests[0].headers


def test_without_a_namespace_the_request_is_a_400():
    agent = FakeHttpClient(200)
    app = webtest.TestApp(NamespaceProxyApp(agent, clock=FakeClock()))
    app.get('/', extra_environ={'REMOTE_ADDR': '10.1.1.2'}, status=400)
    assert agent.requests == []


@pytest.mark.parametrize(
    ('peer', 'address'),
    [
        ('10.1.1.2', '10.1.1.2'),
        ('::ffff:10.1.1.2', '10.1.1.2'),
        ('fe80::f816:3eff:fe00:1%qr-1a', 'fe80::f816:3eff:fe00:1'),
        ('FD00::0A', 'fd00::a'),
    ],
)
def test_the_address_is_the_peer_of_the_connection(peer, address):
    agent = FakeHttpClient(200)
    send(agent, peer=peer)
    assert sent_headers(agent)['x-forwarded-for'] == address


@given(st.dictionaries(st.sampled_from(RESERVED).flatmap(spellings), st.just('forged'), min_size=1, max_size=6))
def test_no_spelling_of_a_forged_header_reaches_the_agent(headers):
    agent = FakeHttpClient(200)
    environ = {header_names.environ_key(name): value for name, value in headers.items()}
    app = NamespaceProxyApp(agent, router_id='r1', clock=FakeClock())
    app(
        {'REQUEST_METHOD': 'GET', 'RAW_URI': '/', 'REMOTE_ADDR': '10.1.1.2', 'wsgi.input': None, **environ},
        lambda status, headers: None,
    )
    assert 'forged' not in sent_headers(agent).values()


def test_a_header_named_in_connection_does_not_remove_the_id():
    agent = FakeHttpClient(200)
    environ = {
        'REQUEST_METHOD': 'GET', 'RAW_URI': '/', 'REMOTE_ADDR': '10.1.1.2', 'wsgi.input': None,
        'HTTP_CONNECTION': 'X-Quantum-Router-ID, X-Forwarded-For, close',
    }  # fmt: skip
    NamespaceProxyApp(agent, router_id='r1')(environ, lambda status, headers: None)
    assert sent_headers(agent)['x-quantum-router-id'] == 'r1'
    assert sent_headers(agent)['x-forwarded-for'] == '10.1.1.2'
    assert 'connection' not in sent_headers(agent)


def test_method_body_and_other_headers_are_unchanged():
    agent = FakeHttpClient(200)
    send(agent, 'POST', '/a%2Fb?q=%zz', {'Accept': 'x/y', 'Content-Type': 'text/plain'}, body=b'secret')
    request = agent.requests[0]
    assert (request.method, request.body) == ('POST', b'secret')
    assert (sent_headers(agent)['accept'], sent_headers(agent)['content-type']) == ('x/y', 'text/plain')


def test_a_get_is_retried_while_the_agent_is_unavailable():
    agent = FakeHttpClient(NotSent('no such file'), MaybeSent('broken'), 200)
    assert send(agent).status_int == 200
    assert len(agent.requests) == 3


def test_each_retry_sends_the_remaining_time():
    agent = FakeHttpClient(NotSent('away'))
    send(agent)
    remaining_ms = [
        int(sent_headers(agent, number)['x-metadata-remaining-ms']) for number in range(len(agent.requests))
    ]
    assert remaining_ms == sorted(remaining_ms, reverse=True)
    assert remaining_ms[-1] < remaining_ms[0] == 8700


def test_an_agent_that_stays_unavailable_is_a_503_at_the_deadline(caplog):
    clock = FakeClock()
    response = send(FakeHttpClient(NotSent('no such file')), clock=clock)
    assert (response.status_int, response.headers['Retry-After']) == (503, '1')
    assert clock.now_s <= 1009.0
    assert 'no response from the metadata agent: no such file' in caplog.text


@pytest.mark.parametrize('status', [403, 404, 429, 500, 503])
def test_every_status_of_the_agent_is_relayed_without_a_retry(status):
    agent = FakeHttpClient(status)
    assert send(agent).status_int == status
    assert len(agent.requests) == 1


def test_a_write_is_retried_only_if_it_was_not_sent():
    broken = FakeHttpClient(MaybeSent('broken'), 200)
    assert send(broken, 'POST', body=b'secret').status_int == 503
    assert len(broken.requests) == 1
    assert send(FakeHttpClient(NotSent('away'), 200), 'POST', body=b'secret').status_int == 200


def test_a_body_over_the_limit_is_a_413():
    assert send(FakeHttpClient(200), 'POST', body=b'x' * 9, router_id='r1', max_body_bytes=8).status_int == 413


class SlowBody:
    """A body that does not arrive before the server's own timeout."""

    def read(self, size):
        raise TimeoutError


def test_a_slow_request_body_is_a_408_and_not_logged_as_a_fault_of_the_agent(caplog):
    agent = FakeHttpClient(200)
    app = NamespaceProxyApp(agent, router_id='r1')
    statuses = []
    with caplog.at_level('INFO'):
        for _ in range(3):
            app(
                {
                    'REQUEST_METHOD': 'POST', 'RAW_URI': '/', 'REMOTE_ADDR': '10.1.1.2',
                    'CONTENT_LENGTH': '5', 'wsgi.input': SlowBody(),
                },
                lambda status, headers, exc_info=None: statuses.append(status),
            )  # fmt: skip
    assert statuses == ['408 Request Timeout'] * 3
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ('INFO', 'A request gets 408: its client did not send the body in time')
    ]
    assert agent.requests == []
