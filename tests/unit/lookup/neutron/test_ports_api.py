# SPDX-License-Identifier: Apache-2.0
"""The client of Neutron's port list, with a server on loopback that sends the responses that Neutron may send."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import requests
from keystoneauth1 import exceptions
from keystoneauth1.session import Session
from urllib3.exceptions import MaxRetryError, NewConnectionError

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron.ports_api import MAX_PAGES, PortsApi
from metadata_wsgi.lookup.neutron.transport import DeadlineAdapter
from tests.fakes import FakeClock
from tests.rawserver import (
    RawServer,
    always_responds_with,
    closes_after_request,
    closes_at_once,
    never_responds,
    responds_with,
)

from .fakes import FakeAuthenticator, token

QUERY = (('network_id', 'n 1'), ('network_id', 'n2'), ('fields', 'id'))


def response(status=200, body=None, *headers):
    content = (
        body if isinstance(body, bytes) else json.dumps({'ports': [{'id': 'p1'}]} if body is None else body).encode()
    )
    lines = [f'HTTP/1.1 {status} Said', f'Content-Length: {len(content)}', *headers, '', '']
    return '\r\n'.join(lines).encode() + content


@pytest.fixture
def neutron():
    """A function: the scripts of a server -> the server, the API, the fake authenticator."""
    made = []

    def serve(*scripts, tokens=('token-1',), connections=4, version=''):
        server = RawServer(*scripts)
        auth = FakeAuthenticator(*(token(value, f'http://127.0.0.1:{server.port}{version}') for value in tokens))
        pooled = requests.Session()
        pooled.trust_env = False
        pooled.mount('http://', DeadlineAdapter(pool_maxsize=connections))
        api = PortsApi(Session(session=pooled), auth, connections=connections)
        made.append((server, api))
        return server, api, auth

    yield serve
    for server, api in made:
        api.close()
        server.close()


def list_ports(api, query=QUERY, timeout_s=9.0, reported=None, **more):
    on_query = (lambda *query: reported.append(query)) if reported is not None else (lambda *query: None)
    return api.ports(query, Deadline.after(timeout_s), on_query, **more)


def test_the_request_has_query_token_and_accept_headers(neutron):
    server, api, _ = neutron(always_responds_with(response()))
    assert list_ports(api) == [{'id': 'p1'}]
    head, *lines = server.requests[0].decode().split('\r\n')
    assert head == 'GET /v2.0/ports?network_id=n+1&network_id=n2&fields=id HTTP/1.1'
    assert {'X-Auth-Token: token-1', 'Accept: application/json', 'Accept-Encoding: identity'} <= set(lines)


@pytest.mark.parametrize('version', ['/', '/v2.0', '/v2.0/', '/network'])
def test_the_endpoint_may_have_a_version(neutron, version):
    server, api, _ = neutron(always_responds_with(response()), version=version)
    list_ports(api)
    path = server.requests[0].split()[1].partition(b'?')[0].decode()
    assert path == version.rstrip('/').removesuffix('/v2.0') + '/v2.0/ports'


def test_connections_are_reused_keepalive(neutron):
    server, api, _ = neutron(always_responds_with(response()))
    for _ in range(3):
        list_ports(api)
    assert (server.connections, len(server.requests)) == (1, 3)


def test_each_query_is_reported(neutron):
    _, api, _ = neutron(always_responds_with(response()))
    reported = []
    list_ports(api, reported=reported)
    assert [(query, count) for query, _, count in reported] == [
        ('GET /v2.0/ports?network_id=n+1&network_id=n2&fields=id', 1)
    ]


def page(number, following):
    link = {'rel': 'next', 'href': f'http://elsewhere.example/v2.0/ports?limit=1&marker={number}&network_id=n2'}
    return response(
        200, {'ports': [{'id': f'p{number}'}], 'ports_links': [{'rel': 'previous'}, link] if following else []}
    )


def test_pages_are_followed_but_never_to_another_host(neutron):
    server, api, _ = neutron(responds_with(page(1, True), page(2, True), page(3, False)))
    assert [port['id'] for port in list_ports(api)] == ['p1', 'p2', 'p3']
    assert [request.split()[1] for request in server.requests[1:]] == [
        b'/v2.0/ports?limit=1&marker=1&network_id=n2',
        b'/v2.0/ports?limit=1&marker=2&network_id=n2',
    ]


def test_pages_1_returns_the_first_page_only(neutron):
    server, api, _ = neutron(always_responds_with(page(1, True)))
    assert [port['id'] for port in list_ports(api, pages=1)] == ['p1']
    assert len(server.requests) == 1


def test_endless_pages_are_an_error(neutron):
    server, api, _ = neutron(always_responds_with(page(1, True)))
    with pytest.raises(InstanceLookupError, match=f'more than {MAX_PAGES} pages'):
        list_ports(api)
    assert len(server.requests) == MAX_PAGES


def test_a_rejected_token_is_renewed_once_and_the_query_retried(neutron):
    server, api, auth = neutron(responds_with(response(401), response()), tokens=('old', 'new'))
    assert list_ports(api) == [{'id': 'p1'}]
    assert [b'X-Auth-Token: new' in request for request in server.requests] == [False, True]
    assert auth.invalidated == []


def test_a_new_token_that_is_rejected_too_is_an_error(neutron):
    server, api, auth = neutron(always_responds_with(response(401)), tokens=('old', 'new'))
    with pytest.raises(InstanceLookupError, match='does it use the same Keystone') as raised:
        list_ports(api)
    assert not isinstance(raised.value, LookupUnavailable)
    assert len(server.requests) == 2
    assert [token.headers['X-Auth-Token'] for token, _ in auth.invalidated] == ['new']


@pytest.mark.parametrize('status', [408, 425, 429, 500, 502, 503, 504])
def test_a_temporary_status_can_be_retried(neutron, status):
    _, api, _ = neutron(always_responds_with(response(status)))
    with pytest.raises(LookupUnavailable, match=f'answered {status}'):
        list_ports(api)


@pytest.mark.parametrize('status', [204, 302, 400, 403, 404, 414])
def test_a_permanent_status_is_not_retried(neutron, status):
    _, api, _ = neutron(always_responds_with(response(status)))
    with pytest.raises(InstanceLookupError, match=f'answered {status}') as raised:
        list_ports(api)
    assert not isinstance(raised.value, LookupUnavailable)


def test_a_redirect_is_not_followed(neutron):
    """The token would go to its target."""
    elsewhere, _, _ = neutron(always_responds_with(response()))
    _, api, _ = neutron(
        always_responds_with(response(302, None, f'Location: http://127.0.0.1:{elsewhere.port}/v2.0/ports'))
    )
    with pytest.raises(InstanceLookupError):
        list_ports(api)
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    'body',
    [b'', b'<html>', b'\xff\xfe', [], {}, {'ports': None}, {'ports': [5]}, {'ports': ['with id']}, {'ports': [{}]}],
)
def test_a_response_that_is_no_list_of_ports_can_be_retried(neutron, body):
    _, api, _ = neutron(always_responds_with(response(200, body)))
    with pytest.raises(LookupUnavailable, match='not a list of ports'):
        list_ports(api)


@pytest.mark.parametrize('script', [closes_at_once, closes_after_request])
def test_a_closed_connection_can_be_retried(neutron, script):
    _, api, _ = neutron(script)
    with pytest.raises(LookupUnavailable, match='gave no response'):
        list_ports(api)


def test_a_stalled_response_ends_at_the_deadline_timeout(neutron):
    _, api, _ = neutron(never_responds)
    with pytest.raises(LookupUnavailable, match='gave no response'):
        list_ports(api, timeout_s=0.2)


def test_queries_above_the_connection_limit_wait_until_their_deadline(neutron):
    received, released = threading.Event(), threading.Event()

    def blocks(peer):
        peer.request()
        received.set()
        released.wait(20)
        peer.send(response())

    server, api, _ = neutron(blocks, connections=1)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(list_ports, api)
        assert received.wait(20)
        with pytest.raises(LookupUnavailable, match='while earlier queries waited for Neutron'):
            list_ports(api, timeout_s=0.1)
        released.set()
        assert first.result() == [{'id': 'p1'}]
    assert len(server.requests) == 1


def test_no_error_text_contains_the_token(neutron):
    for script in (always_responds_with(response(500, b'token-1')), closes_after_request):
        _, api, _ = neutron(script)
        with pytest.raises(LookupUnavailable) as raised:
            list_ports(api)
        assert 'token-1' not in str(raised.value)


def test_the_projects_of_the_networks_whose_use_is_visible(neutron):
    body = {'network_ip_availabilities': [{'project_id': 'p1'}, {'tenant_id': 'p2'}]}
    server, api, _ = neutron(responds_with(response(body=body)))
    reported = []
    assert api.network_owners(Deadline.after(9), lambda *query: reported.append(query)) == ['p1', 'p2']
    assert b'GET /v2.0/network-ip-availabilities?fields=project_id&fields=tenant_id ' in server.requests[0]
    assert [(what, count) for what, _, count in reported] == [('GET /v2.0/network-ip-availabilities', 2)]


@pytest.mark.parametrize(
    ('answer', 'kind'),
    [
        (response(404, {}), InstanceLookupError),
        (response(503, {}), LookupUnavailable),
        (response(200, b'[]'), LookupUnavailable),
        (response(200, b'{"network_ip_availabilities": [1]}'), LookupUnavailable),
    ],
)
def test_no_list_of_networks_is_an_error(neutron, answer, kind):
    _, api, _ = neutron(responds_with(answer))
    with pytest.raises(InstanceLookupError) as raised:
        api.network_owners(Deadline.after(9), lambda *query: None)
    assert type(raised.value) is kind


class UnreachableSession:
    """Opens no connection until ``is_back``; counts the attempts."""

    def __init__(self):
        self.attempts = 0
        self.is_back = False

    def get(self, url, **options):
        self.attempts += 1
        if self.is_back:
            return SimpleNamespace(status_code=200, json=lambda: {'ports': [{'id': 'p1'}]})
        cause = NewConnectionError(None, 'no connection to neutron port 9696: Connection refused')
        raise exceptions.ConnectFailure('Unable to establish connection') from MaxRetryError(None, url, cause)


def test_neutron_without_connections_gets_one_attempt_in_an_interval_circuit_breaker():
    clock, session = FakeClock(), UnreachableSession()
    api = PortsApi(session, FakeAuthenticator(), connections=4, clock=clock)

    def attempts(count, timeout_s=9.0):
        before = session.attempts
        for _ in range(count):
            with pytest.raises(LookupUnavailable, match='Connection refused'):
                api.ports(QUERY, Deadline.after(timeout_s, clock), lambda *query: None)
        return session.attempts - before

    assert attempts(100) == limits.CIRCUIT_OPEN_FAILURES
    clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    assert attempts(100) == 1
    clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    assert attempts(100, timeout_s=limits.CIRCUIT_MIN_TIME_S - 0.1) == 0
    session.is_back = True
    for _ in range(10):
        assert api.ports(QUERY, Deadline.after(9.0, clock), lambda *query: None) == [{'id': 'p1'}]


def test_responses_that_break_do_not_open_the_circuit(neutron):
    """A query that makes Neutron fail must not stop those of other instances."""
    failures = 2 * limits.CIRCUIT_OPEN_FAILURES
    _, api, _ = neutron(*[closes_after_request] * failures, always_responds_with(response()))
    for _ in range(failures):
        with pytest.raises(LookupUnavailable):
            list_ports(api)
    assert list_ports(api) == [{'id': 'p1'}]
