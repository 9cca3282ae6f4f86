# SPDX-License-Identifier: Apache-2.0
"""Over loopback, with a server that misbehaves."""

import gzip
import threading

import pytest
import requests

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.lookup.neutron import transport
from metadata_wsgi.lookup.neutron.transport import BoundedAdapter, within
from tests.rawserver import RawServer, keeps_saying, says, stalls

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'


@pytest.fixture
def served():
    """A function: the scripts of a server -> the server, and how to get an answer of it."""
    made = []

    def serve(*scripts):
        server, session = RawServer(*scripts), requests.Session()
        session.trust_env = False
        session.mount('http://', BoundedAdapter(pool_maxsize=2))
        made.append((server, session))

        def get(within_s=9.0, **more):
            with within(Deadline.after(within_s)):
                return session.get(f'http://127.0.0.1:{server.port}/', **more)

        return server, get

    yield serve
    for server, session in made:
        session.close()
        server.close()


def drips(piece):
    """Begin an answer and send ``piece`` of it again and again: no single wait is long."""

    def script(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n')
        while not peer.server.stop.wait(0.02):
            peer.send(piece)

    return script


def test_an_answer_is_read_whole(served):
    _, get = served(keeps_saying(OK))
    assert get().content == b'ok'


def test_a_connection_is_used_again(served):
    server, get = served(keeps_saying(OK))
    for _ in range(3):
        get()
    assert server.connections == 1


def test_chunks_and_gzip(served):
    packed = gzip.compress(b'ports' * 1000)
    chunk = b'%x\r\n%b\r\n0\r\n\r\n' % (len(packed), packed)
    head = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n'
    server, get = served(keeps_saying(head + chunk))
    assert [get().content, get().content] == [b'ports' * 1000] * 2
    assert server.connections == 1


@pytest.mark.parametrize('script', [stalls, drips(b'x'), drips(b'')], ids=['silent', 'dripping', 'stuck'])
def test_the_deadline_ends_it(served, script):
    """A timeout of each single wait would let a server that drips go on for ever."""
    _, get = served(script)
    with pytest.raises(requests.exceptions.Timeout):
        get(within_s=0.3)


def test_the_callers_own_timeout_has_no_say(served):
    """keystoneauth has one of its own, for every request the same."""
    answered = threading.Event()

    def late(peer):
        peer.request()
        answered.wait(0.3)
        peer.send(OK)

    _, get = served(late)
    assert get(timeout=0.01).content == b'ok'


def test_with_no_time_left_nothing_is_sent(served):
    server, get = served(keeps_saying(OK))
    with pytest.raises(requests.exceptions.Timeout):
        get(within_s=0)
    assert server.connections == 0


def test_an_answer_that_is_cut_off_is_an_error_and_its_connection_not_used_again(served):
    cut = says(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf')
    server, get = served(cut, keeps_saying(OK))
    with pytest.raises(requests.exceptions.ConnectionError):
        get()
    assert get().content == b'ok'
    assert server.connections == 2


def test_an_endless_answer_is_given_up(served):
    def endless(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        while True:
            peer.send(b'x' * transport.PIECE)

    _, get = served(endless)
    with pytest.raises(requests.exceptions.ConnectionError, match='longer than'):
        get()


def test_a_small_answer_that_unpacks_to_a_large_one_is_given_up(served):
    packed = gzip.compress(bytes(transport.LONGEST_ANSWER + 1))
    head = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n' % len(packed)
    _, get = served(keeps_saying(head + packed))
    with pytest.raises(requests.exceptions.ConnectionError, match='longer than'):
        get()


def test_what_cannot_be_unpacked_is_an_error_of_requests(served):
    _, get = served(keeps_saying(b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok'))
    with pytest.raises(requests.exceptions.ConnectionError):
        get()


def test_blocks_within_each_other_have_deadlines_of_their_own(served):
    _, get = served(keeps_saying(OK))
    with within(Deadline.after(0)):
        assert get().content == b'ok'
