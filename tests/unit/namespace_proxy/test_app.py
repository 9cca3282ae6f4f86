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
from tests.unit.http.test_header_names import FORBIDDEN, spellings


def ask(hop, method='GET', path='/openstack', headers=None, peer='10.1.1.2', body=b'', clock=None, **options):
    clock = clock or FakeClock()
    options = options or {'router_id': 'r1'}
    app = webtest.TestApp(NamespaceProxyApp(hop, clock=clock, sleep=clock.sleep, **options))
    return app.request(
        path, method=method, headers=headers or {}, environ={'REMOTE_ADDR': peer}, body=body, expect_errors=True
    )


def said(hop, number=0):
    return dict(hop.requests[number].headers)


def test_who_asks_is_set_and_not_appended():
    hop = FakeHttpClient(200)
    ask(hop, headers={'X-Forwarded-For': '10.6.6.6', 'X-Quantum-Router-ID': 'other', 'X-Quantum-Network-ID': 'n'})
    told = {name: value for name, value in hop.requests[0].headers if header_names.is_reserved(name)}
    assert told == {
        'x-forwarded-for': '10.1.1.2', 'x-quantum-router-id': 'r1', 'x-metadata-remaining-ms': '8700',
        'x-metadata-guest-forwarded': '1',
    }  # fmt: skip
    assert len([name for name, _ in hop.requests[0].headers if header_names.is_reserved(name)]) == 4


@pytest.mark.parametrize(
    ('headers', 'told'),
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
def test_that_a_guest_said_for_whom_it_asks_is_told_in_one_bit(headers, told):
    hop = FakeHttpClient(200)
    ask(hop, headers=headers)
    assert said(hop).get('x-metadata-guest-forwarded') == told


@pytest.mark.parametrize(
    ('options', 'header'),
    [
        ({'router_id': 'r1'}, ('x-quantum-router-id', 'r1')),
        ({'network_id': 'n1'}, ('x-quantum-network-id', 'n1')),
        ({'router_id': 'r1', 'network_id': 'n1'}, ('x-quantum-router-id', 'r1')),
        ({'network_id': 'n1', 'prefix': 'X-Neutron'}, ('x-neutron-network-id', 'n1')),
    ],
)
def test_the_id_is_its_own(options, header):
    hop = FakeHttpClient(200)
    ask(hop, **options)
    assert header in hop.requests[0].headers


@pytest.mark.parametrize(
    ('namespace', 'header'),
    [
        (environ_keys.Namespace(router_id='r1'), ('x-quantum-router-id', 'r1')),
        (environ_keys.Namespace(network_id='n1'), ('x-quantum-network-id', 'n1')),
    ],
)
def test_one_that_serves_many_namespaces_takes_the_id_from_the_socket(namespace, header):
    hop = FakeHttpClient(200)
    app = webtest.TestApp(NamespaceProxyApp(hop, clock=FakeClock()))
    app.get('/', extra_environ={environ_keys.NAMESPACE: namespace, 'REMOTE_ADDR': '10.1.1.2'})
    assert header in hop.requests[0].headers


def test_without_a_namespace_nobody_is_asked():
    hop = FakeHttpClient(200)
    app = webtest.TestApp(NamespaceProxyApp(hop, clock=FakeClock()))
    app.get('/', extra_environ={'REMOTE_ADDR': '10.1.1.2'}, status=400)
    assert hop.requests == []


@pytest.mark.parametrize(
    ('peer', 'address'),
    [
        ('10.1.1.2', '10.1.1.2'),
        ('::ffff:10.1.1.2', '10.1.1.2'),
        ('fe80::f816:3eff:fe00:1%qr-1a', 'fe80::f816:3eff:fe00:1'),
        ('FD00::0A', 'fd00::a'),
    ],
)
def test_the_address_is_the_connections_peer(peer, address):
    hop = FakeHttpClient(200)
    ask(hop, peer=peer)
    assert said(hop)['x-forwarded-for'] == address


@given(st.dictionaries(st.sampled_from(FORBIDDEN).flatmap(spellings), st.just('forged'), min_size=1, max_size=6))
def test_no_spelling_of_a_forged_header_passes(headers):
    hop = FakeHttpClient(200)
    environ = {'HTTP_' + name.upper().replace('-', '_'): value for name, value in headers.items()}
    app = NamespaceProxyApp(hop, router_id='r1', clock=FakeClock())
    app(
        {'REQUEST_METHOD': 'GET', 'RAW_URI': '/', 'REMOTE_ADDR': '10.1.1.2', 'wsgi.input': None, **environ},
        lambda status, headers: None,
    )
    assert 'forged' not in said(hop).values()


def test_a_header_named_in_connection_does_not_take_the_id_away():
    hop = FakeHttpClient(200)
    environ = {
        'REQUEST_METHOD': 'GET', 'RAW_URI': '/', 'REMOTE_ADDR': '10.1.1.2', 'wsgi.input': None,
        'HTTP_CONNECTION': 'X-Quantum-Router-ID, X-Forwarded-For, close',
    }  # fmt: skip
    NamespaceProxyApp(hop, router_id='r1')(environ, lambda status, headers: None)
    assert said(hop)['x-quantum-router-id'] == 'r1'
    assert said(hop)['x-forwarded-for'] == '10.1.1.2'
    assert 'connection' not in said(hop)


def test_the_rest_passes_as_it_is():
    hop = FakeHttpClient(200)
    ask(hop, 'POST', '/a%2Fb?q=%zz', {'Accept': 'x/y', 'Content-Type': 'text/plain'}, body=b'secret')
    request = hop.requests[0]
    assert (request.method, request.body) == ('POST', b'secret')
    assert (said(hop)['accept'], said(hop)['content-type']) == ('x/y', 'text/plain')


def test_a_read_is_held_while_the_agent_is_away():
    hop = FakeHttpClient(NotSent('no such file'), MaybeSent('broken'), 200)
    assert ask(hop).status_int == 200
    assert len(hop.requests) == 3


def test_each_try_says_how_much_time_is_left():
    hop = FakeHttpClient(NotSent('away'))
    ask(hop)
    left = [int(said(hop, number)['x-metadata-remaining-ms']) for number in range(len(hop.requests))]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] == 8700


def test_an_agent_that_stays_away_is_a_503_within_the_deadline(caplog):
    clock = FakeClock()
    response = ask(FakeHttpClient(NotSent('no such file')), clock=clock)
    assert (response.status_int, response.headers['Retry-After']) == (503, '1')
    assert clock.now_s <= 1009.0
    assert 'no answer from the metadata agent: no such file' in caplog.text


@pytest.mark.parametrize('status', [403, 404, 429, 500, 503])
def test_what_the_agent_says_is_relayed(status):
    hop = FakeHttpClient(status)
    assert ask(hop).status_int == status
    assert len(hop.requests) == 1


def test_a_write_is_sent_again_only_where_it_was_not_sent():
    broken = FakeHttpClient(MaybeSent('broken'), 200)
    assert ask(broken, 'POST', body=b'secret').status_int == 503
    assert len(broken.requests) == 1
    assert ask(FakeHttpClient(NotSent('away'), 200), 'POST', body=b'secret').status_int == 200


def test_a_body_over_the_limit_is_a_413():
    assert ask(FakeHttpClient(200), 'POST', body=b'x' * 9, router_id='r1', max_body_bytes=8).status_int == 413
