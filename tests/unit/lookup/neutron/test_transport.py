# SPDX-License-Identifier: Apache-2.0
"""Over loopback, with a server that misbehaves."""

import gzip
import threading

import pytest
import requests

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.lookup.neutron import transport
from metadata_wsgi.lookup.neutron.transport import DeadlineAdapter, deadline_scope
from tests.rawserver import RawServer, keeps_saying, says, stalls

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'


@pytest.fixture
def served():
    """A function: the scripts of a server -> the server, and a function that sends a GET to it."""
    made = []

    def serve(*scripts):
        server, session = RawServer(*scripts), requests.Session()
        session.trust_env = False
        session.mount('http://', DeadlineAdapter(pool_maxsize=2))
        made.append((server, session))

        def get(timeout_s=9.0, **more):
            with deadline_scope(Deadline.after(timeout_s)):
                return session.get(f'http://127.0.0.1:{server.port}/', **more)

        return server, get

    yield serve
    for server, session in made:
        session.close()
        server.close()


def drips(chunk):
    """Start a response and send ``chunk`` repeatedly: no single read takes long."""

    def script(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n')
        while not peer.server.stop.wait(0.02):
            peer.send(chunk)

    return script


def test_the_whole_response_is_read(served):
    _, get = served(keeps_saying(OK))
    assert get().content == b'ok'


def test_a_connection_is_reused_keepalive(served):
    server, get = served(keeps_saying(OK))
    for _ in range(3):
        get()
    assert server.connections == 1


def test_chunked_and_gzip_responses(served):
    packed = gzip.compress(b'ports' * 1000)
    chunk = b'%x\r\n%b\r\n0\r\n\r\n' % (len(packed), packed)
    head = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n'
    server, get = served(keeps_saying(head + chunk))
    assert [get().content, get().content] == [b'ports' * 1000] * 2
    assert server.connections == 1


@pytest.mark.parametrize('script', [stalls, drips(b'x'), drips(b'')], ids=['silent', 'dripping', 'stuck'])
def test_the_deadline_ends_a_stalled_or_dripping_response_timeout(served, script):
    """A timeout of each single read would never end a response that drips."""
    _, get = served(script)
    with pytest.raises(requests.exceptions.Timeout):
        get(timeout_s=0.3)


def test_the_timeout_argument_of_the_caller_is_ignored(served):
    """keystoneauth passes the same timeout with every request."""
    released = threading.Event()

    def late(peer):
        peer.request()
        released.wait(0.3)
        peer.send(OK)

    _, get = served(late)
    assert get(timeout=0.01).content == b'ok'


def test_after_the_deadline_nothing_is_sent(served):
    server, get = served(keeps_saying(OK))
    with pytest.raises(requests.exceptions.Timeout):
        get(timeout_s=0)
    assert server.connections == 0


def test_a_truncated_response_is_an_error_and_its_connection_is_not_reused(served):
    cut = says(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf')
    server, get = served(cut, keeps_saying(OK))
    with pytest.raises(requests.exceptions.ConnectionError):
        get()
    assert get().content == b'ok'
    assert server.connections == 2


def test_an_endless_response_is_an_error(served):
    def endless(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        while True:
            peer.send(b'x' * transport.CHUNK_BYTES)

    _, get = served(endless)
    with pytest.raises(requests.exceptions.ConnectionError, match='longer than'):
        get()


def test_a_compressed_response_that_is_too_large_is_an_error(served):
    packed = gzip.compress(bytes(transport.MAX_RESPONSE_BYTES + 1))
    head = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n' % len(packed)
    _, get = served(keeps_saying(head + packed))
    with pytest.raises(requests.exceptions.ConnectionError, match='longer than'):
        get()


def test_invalid_gzip_is_an_error_of_requests(served):
    _, get = served(keeps_saying(b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok'))
    with pytest.raises(requests.exceptions.ConnectionError):
        get()


def test_nested_scopes_have_their_own_deadlines(served):
    _, get = served(keeps_saying(OK))
    with deadline_scope(Deadline.after(0)):
        assert get().content == b'ok'
