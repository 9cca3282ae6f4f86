# SPDX-License-Identifier: Apache-2.0
"""Over loopback, with a server that says what Neutron may say."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from keystoneauth1.session import Session

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron.ports_api import PAGES, PortsApi
from metadata_wsgi.lookup.neutron.transport import BoundedAdapter
from tests.rawserver import RawServer, closes_after_the_request, closes_at_once, keeps_saying, says, stalls

from .fakes import FakeAccess, grant

QUERY = (('network_id', 'n 1'), ('network_id', 'n2'), ('fields', 'id'))


def answer(status=200, body=None, *headers):
    content = (
        body if isinstance(body, bytes) else json.dumps({'ports': [{'id': 'p1'}]} if body is None else body).encode()
    )
    lines = [f'HTTP/1.1 {status} Said', f'Content-Length: {len(content)}', *headers, '', '']
    return '\r\n'.join(lines).encode() + content


@pytest.fixture
def quantum():
    """A function: the scripts of a server -> the server, the API, the fake access."""
    made = []

    def serve(*scripts, tokens=('token-1',), connections=4, version=''):
        server = RawServer(*scripts)
        access = FakeAccess(*(grant(token, f'http://127.0.0.1:{server.port}{version}') for token in tokens))
        pooled = requests.Session()
        pooled.trust_env = False
        pooled.mount('http://', BoundedAdapter(pool_maxsize=connections))
        api = PortsApi(Session(session=pooled), access, connections=connections)
        made.append((server, api))
        return server, api, access

    yield serve
    for server, api in made:
        api.close()
        server.close()


def ask(api, query=QUERY, within_s=9.0, told=None, **more):
    on_query = (lambda *query: told.append(query)) if told is not None else (lambda *query: None)
    return api.ports(query, Deadline.after(within_s), on_query, **more)


def test_what_is_sent(quantum):
    server, api, _ = quantum(keeps_saying(answer()))
    assert ask(api) == [{'id': 'p1'}]
    head, *lines = server.requests[0].decode().split('\r\n')
    assert head == 'GET /v2.0/ports?network_id=n+1&network_id=n2&fields=id HTTP/1.1'
    assert {'X-Auth-Token: token-1', 'Accept: application/json', 'Accept-Encoding: identity'} <= set(lines)


@pytest.mark.parametrize('version', ['/', '/v2.0', '/v2.0/', '/network'])
def test_the_endpoint_may_have_a_version_already(quantum, version):
    server, api, _ = quantum(keeps_saying(answer()), version=version)
    ask(api)
    path = server.requests[0].split()[1].partition(b'?')[0].decode()
    assert path == version.rstrip('/').removesuffix('/v2.0') + '/v2.0/ports'


def test_connections_are_kept(quantum):
    server, api, _ = quantum(keeps_saying(answer()))
    for _ in range(3):
        ask(api)
    assert (server.connections, len(server.requests)) == (1, 3)


def test_each_query_is_told(quantum):
    _, api, _ = quantum(keeps_saying(answer()))
    told = []
    ask(api, told=told)
    assert [(query, count) for query, _, count in told] == [
        ('GET /v2.0/ports?network_id=n+1&network_id=n2&fields=id', 1)
    ]


def page(number, following):
    link = {'rel': 'next', 'href': f'http://elsewhere.example/v2.0/ports?limit=1&marker={number}&network_id=n2'}
    return answer(
        200, {'ports': [{'id': f'p{number}'}], 'ports_links': [{'rel': 'previous'}, link] if following else []}
    )


def test_pages_are_followed_and_never_to_another_host(quantum):
    server, api, _ = quantum(says(page(1, True), page(2, True), page(3, False)))
    assert [port['id'] for port in ask(api)] == ['p1', 'p2', 'p3']
    assert [request.split()[1] for request in server.requests[1:]] == [
        b'/v2.0/ports?limit=1&marker=1&network_id=n2',
        b'/v2.0/ports?limit=1&marker=2&network_id=n2',
    ]


def test_a_sample_is_the_first_page(quantum):
    server, api, _ = quantum(keeps_saying(page(1, True)))
    assert [port['id'] for port in ask(api, pages=1)] == ['p1']
    assert len(server.requests) == 1


def test_pages_without_end_are_given_up(quantum):
    server, api, _ = quantum(keeps_saying(page(1, True)))
    with pytest.raises(InstanceLookupError, match=f'more than {PAGES} pages'):
        ask(api)
    assert len(server.requests) == PAGES


def test_a_refused_token_is_renewed_once_and_the_question_repeated(quantum):
    server, api, access = quantum(says(answer(401), answer()), tokens=('old', 'new'))
    assert ask(api) == [{'id': 'p1'}]
    assert [b'X-Auth-Token: new' in request for request in server.requests] == [False, True]
    assert access.distrusted == []


def test_a_new_token_that_is_refused_too_is_an_error(quantum):
    server, api, access = quantum(keeps_saying(answer(401)), tokens=('old', 'new'))
    with pytest.raises(InstanceLookupError, match='does it ask the same Keystone') as raised:
        ask(api)
    assert not isinstance(raised.value, LookupUnavailable)
    assert len(server.requests) == 2
    assert [grant.headers['X-Auth-Token'] for grant, _ in access.distrusted] == ['new']


@pytest.mark.parametrize('status', [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass(quantum, status):
    _, api, _ = quantum(keeps_saying(answer(status)))
    with pytest.raises(LookupUnavailable, match=f'answered {status}'):
        ask(api)


@pytest.mark.parametrize('status', [204, 302, 400, 403, 404, 414])
def test_what_stays_wrong(quantum, status):
    _, api, _ = quantum(keeps_saying(answer(status)))
    with pytest.raises(InstanceLookupError, match=f'answered {status}') as raised:
        ask(api)
    assert not isinstance(raised.value, LookupUnavailable)


def test_a_redirect_is_not_followed(quantum):
    """The token would go to wherever it points."""
    elsewhere, _, _ = quantum(keeps_saying(answer()))
    _, api, _ = quantum(keeps_saying(answer(302, None, f'Location: http://127.0.0.1:{elsewhere.port}/v2.0/ports')))
    with pytest.raises(InstanceLookupError):
        ask(api)
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    'body',
    [b'', b'<html>', b'\xff\xfe', [], {}, {'ports': None}, {'ports': [5]}, {'ports': ['with id']}, {'ports': [{}]}],
)
def test_what_is_no_list_of_ports(quantum, body):
    _, api, _ = quantum(keeps_saying(answer(200, body)))
    with pytest.raises(LookupUnavailable, match='no list of ports'):
        ask(api)


@pytest.mark.parametrize('script', [closes_at_once, closes_after_the_request])
def test_no_answer(quantum, script):
    _, api, _ = quantum(script)
    with pytest.raises(LookupUnavailable, match='gave no answer'):
        ask(api)


def test_silence_ends_with_the_deadline(quantum):
    _, api, _ = quantum(stalls)
    with pytest.raises(LookupUnavailable, match='gave no answer'):
        ask(api, within_s=0.2)


def test_more_questions_than_connections_wait_and_no_longer_than_they_may(quantum):
    asked, let_go = threading.Event(), threading.Event()

    def held(peer):
        peer.request()
        asked.set()
        let_go.wait(20)
        peer.send(answer())

    server, api, _ = quantum(held, connections=1)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(ask, api)
        assert asked.wait(20)
        with pytest.raises(LookupUnavailable, match='before Quantum had answered other questions'):
            ask(api, within_s=0.1)
        let_go.set()
        assert first.result() == [{'id': 'p1'}]
    assert len(server.requests) == 1


def test_no_error_has_the_token_in_it(quantum):
    for script in (keeps_saying(answer(500, b'token-1')), closes_after_the_request):
        _, api, _ = quantum(script)
        with pytest.raises(LookupUnavailable) as raised:
            ask(api)
        assert 'token-1' not in str(raised.value)
