# SPDX-License-Identifier: Apache-2.0
"""The HTTP client against servers that misbehave, over TCP and a unix socket."""

import time
from collections import deque

import gevent
import pytest
from gevent import socket as gevent_socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, MaybeSent, NotSent
from metadata_wsgi.http import client as http_client
from metadata_wsgi.http import message
from tests.rawserver import (
    RawServer,
    always_responds_with,
    never_responds,
    responds_with,
)

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
GET = message.Request('GET', '/openstack', [])
POST = message.Request('POST', '/openstack/2013-04-04/password', [], b'secret')


def send_request(client, request=GET, within_s=60.0):
    received = client.send_request(request, Deadline.after(within_s))
    return received, b''.join(received.body)


@pytest.mark.parametrize(
    'target', ['/a%2fb//../x', '/%C3%A9', '/\xe9', '/?q=%zz', '/a;b?c#d', '//x', '/%00', '/"<>\\^`{|}']
)
def test_a_target_arrives_byte_for_byte(served, target):
    server, client = served(responds_with(OK))
    send_request(client, message.Request('GET', target, []))
    assert server.requests[0].split(b'\r\n')[0] == b'GET ' + target.encode('latin-1') + b' HTTP/1.1'


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='\x7f'), max_size=200))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_target_arrives_byte_for_byte(echo, rest):
    server, client = echo
    send_request(client, message.Request('GET', '/' + rest, []))
    assert server.requests[-1].startswith(b'GET /' + rest.encode('latin-1') + b' HTTP/1.1\r\n')


@pytest.fixture(scope='module')
def echo():
    server = RawServer(always_responds_with(OK))
    yield server, http_client.tcp_client('127.0.0.1', server.port)
    server.close()


def test_a_request_arrives_with_its_headers_and_nothing_else(served):
    server, client = served(responds_with(OK))
    send_request(
        client, message.Request('GET', '/', [('x-custom', 'caf\xe9'), ('accept', '*/*'), ('host', '169.254.169.254')])
    )
    head = server.requests[0].decode('latin-1').split('\r\n')[1:-2]
    host = f'127.0.0.1:{server.port}' if server.port else 'localhost'
    assert sorted(line.lower() for line in head) == [
        'accept-encoding: identity', 'accept: */*', f'host: {host}', 'x-custom: caf\xe9',
    ]  # fmt: skip


def test_user_agent_and_accept_encoding_of_the_client_are_sent(served):
    server, client = served(responds_with(OK))
    send_request(client, message.Request('GET', '/', [('accept-encoding', 'gzip'), ('user-agent', 'Cloud-Init/25.1')]))
    head = server.requests[0].lower()
    assert (head.count(b'accept-encoding: gzip\r\n'), head.count(b'accept-encoding')) == (1, 1)
    assert (head.count(b'user-agent: cloud-init/25.1\r\n'), head.count(b'user-agent')) == (1, 1)


@pytest.mark.parametrize(('body', 'length'), [(b'secret', 6), (b'', 0), (b'\x00\xff' * 40000, 80000)])
def test_a_post_has_a_content_length_and_is_never_chunked(served, body, length):
    """Nova answers 500 to a chunked POST."""
    server, client = served(responds_with(OK))
    send_request(client, message.Request('POST', '/', [('content-length', '77'), ('x-last', '1')], body))
    head, _, content = server.requests[0].partition(b'\r\n\r\n')
    assert content == body
    assert head.lower().count(b'content-length: %d' % length) == head.lower().count(b'content-length') == 1
    assert b'chunked' not in head.lower()
    assert b'x-last: 1\r\n' in head + b'\r\n'


def test_a_keepalive_connection_is_reused(served):
    server, client = served(always_responds_with(OK))
    for _ in range(3):
        send_request(client)
    assert server.connections == 1


@pytest.mark.parametrize(
    'response',
    [
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n',
        b'HTTP/1.1 204 No Content\r\n\r\n',
        b'HTTP/1.1 304 Not Modified\r\n\r\n',
    ],
    ids=['chunked', '204', '304'],
)
def test_a_keepalive_connection_is_reused_after_every_framing(served, response):
    server, client = served(always_responds_with(response))
    for _ in range(3):
        send_request(client)
    assert server.connections == 1


def test_a_connection_is_not_reused_after_connection_close(served):
    """The server closes it, perhaps after it received the next request."""
    server, client = served(always_responds_with(OK.replace(b'\r\n\r\n', b'\r\nConnection: close\r\n\r\n')))
    for _ in range(2):
        assert send_request(client)[1] == b'ok'
    assert server.connections == 2


def closes_on_the_second_request(peer):
    peer.request()
    peer.send(OK)
    peer.request()


@pytest.mark.parametrize('script', [responds_with(OK), closes_on_the_second_request], ids=['before', 'by the request'])
def test_an_idle_connection_that_the_server_closed_is_replaced(served, script):
    server, client = served(script, always_responds_with(OK))
    assert [send_request(client)[1] for _ in range(3)] == [b'ok'] * 3
    assert server.connections == 2


@pytest.mark.parametrize('script', [responds_with(OK), closes_on_the_second_request], ids=['before', 'by the request'])
def test_the_next_idle_connection_is_tried_after_one_that_the_server_closed(served, script):
    server, client = served(always_responds_with(OK), script)
    # Each POST opens a connection. The last one is tried first.
    for request in (POST, POST, GET):
        assert send_request(client, request)[1] == b'ok'
    assert server.connections == 2


def test_the_pool_keeps_no_more_than_its_size_of_idle_connections():
    server = RawServer(always_responds_with(OK))
    client = http_client.PooledHttpClient(
        lambda within_s: gevent_socket.create_connection(('127.0.0.1', server.port)), name='x', host='x', max_idle=1
    )
    send_request(client, POST)
    (first,) = client._idle
    send_request(client, POST)
    # The second one is closed. A full deque would drop the first one without closing it.
    assert list(client._idle) == [first]
    assert repr(client) == '<HTTP client of x, 1 idle connections>'
    server.close()


def fill_pool(client, connections):
    """A POST never reuses a connection, so each adds one to the pool."""
    for _ in range(connections):
        send_request(client, POST)


def test_idle_connections_that_are_too_old_are_closed_and_not_reused(served):
    """A firewall may have forgotten them, without a reset."""
    server, client = served(always_responds_with(OK))
    fill_pool(client, 3)
    old = list(client._idle)
    later_s = time.monotonic() + limits.MAX_IDLE_S + 1
    client.send_request(GET, Deadline.after(5, lambda: later_s))
    assert server.connections == 4
    assert [connection.reusable for connection in old] == [False] * 3
    client.send_request(GET, Deadline.after(5, lambda: later_s + limits.MAX_IDLE_S - 1))
    assert server.connections == 4


def test_retry_after_a_timeout_on_a_dead_idle_connection_gets_a_new_connection(served):
    """A firewall, a load balancer or a host that lost its power drops all idle connections at once."""
    dead = 3

    def responds_once(peer):
        peer.request()
        peer.send(OK)
        never_responds(peer)

    server, client = served(*[responds_once] * dead, always_responds_with(OK))
    fill_pool(client, dead)
    with pytest.raises(MaybeSent, match=r'timed out|not complete in time'):
        send_request(client, within_s=1.0)
    assert send_request(client)[1] == b'ok'
    assert server.connections == dead + 1


def test_timeout_inside_a_response_keeps_the_other_idle_connections(served):
    """The connection works, and the service is slow."""

    def responds_half(peer):
        peer.request()
        peer.send(OK)
        peer.request()
        peer.send(OK[:20])
        never_responds(peer)

    server, client = served(always_responds_with(OK), responds_half)
    fill_pool(client, 2)
    with pytest.raises(MaybeSent, match=r'timed out|not complete in time'):
        send_request(client, within_s=3.0)
    assert send_request(client)[1] == b'ok'
    assert server.connections == 2


def test_a_connection_that_another_thread_took_is_replaced(served):
    class TakenPool(deque):
        """Not empty when it is looked at, and empty then."""

        def __bool__(self):
            return True

        def pop(self):
            raise IndexError

    server, client = served(always_responds_with(OK))
    client._idle = TakenPool(maxlen=1)
    assert send_request(client)[1] == b'ok'
    assert server.connections == 1


def test_a_reused_connection_that_does_not_respond_is_a_timeout_at_the_deadline(served):
    def responds_once(peer):
        peer.request()
        peer.send(OK)
        never_responds(peer)

    server, client = served(responds_once)
    send_request(client)
    with pytest.raises(MaybeSent, match=r'timed out|not complete in time'):
        send_request(client, within_s=1.0)
    assert server.connections == 1


def test_a_response_to_head_has_no_body_whatever_its_content_length(served):
    server, client = served(always_responds_with(OK.removesuffix(b'ok')))
    for _ in range(2):
        received, body = send_request(client, message.Request('HEAD', '/', []))
        assert (received.status, body) == (200, b'')
    assert server.connections == 1


def test_an_error_without_a_text_is_named_by_its_type():
    def connect(within_s):
        raise TimeoutError

    with pytest.raises(NotSent, match=r'^x: TimeoutError$'):
        send_request(http_client.PooledHttpClient(connect, name='x', host='x'))


def test_a_reused_connection_that_breaks_inside_a_response_is_maybe_sent(served):
    """Only one that is closed before the response started is replaced without an error."""

    def script(peer):
        peer.request()
        peer.send(OK)
        peer.request()
        peer.send(OK[:20])

    server, client = served(script, always_responds_with(OK))
    send_request(client)
    with pytest.raises(MaybeSent):
        send_request(client)
    assert server.connections == 1


@pytest.mark.parametrize(
    'request_',
    [
        message.Request('GET', '/', [('x-instance-id', 'i1\r\nX-Metadata-Provider: p')]),
        message.Request('GET', '/', [('x-instance-id', 'i1\nX: y')]),
        message.Request('GET', '/', [('x-instance-id', 'i1\x00')]),
        message.Request('GET', '/', [('x-instance-id', 'i\u20ac')]),
        message.Request('GET', '/ HTTP/1.1\r\nX: y', []),
    ],
)
def test_a_line_break_in_a_value_never_becomes_a_header(served, request_):
    """A tenant may write anything into a port's device_id, which becomes X-Instance-ID."""
    server, client = served(responds_with(OK))
    with pytest.raises(BadRequest):
        send_request(client, request_)
    assert server.requests == []


def test_a_post_never_reuses_an_idle_connection(served):
    server, client = served(always_responds_with(OK))
    send_request(client)
    send_request(client, POST)
    assert server.connections == 2


@pytest.mark.parametrize(
    'script',
    [never_responds, None],
    ids=['no response', 'half a response'],
)
def test_a_server_that_does_not_respond_is_a_timeout_at_the_deadline(served, script):
    def half(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf')
        peer.server.stop.wait(20)

    _, client = served(script or half)
    deadline = Deadline.after(1.0)
    with pytest.raises(MaybeSent):
        client.send_request(GET, deadline)
    assert deadline.remaining_s() == 0.0


@pytest.mark.parametrize('framing', [b'Content-Length: 1000', b'Transfer-Encoding: chunked'], ids=['length', 'chunked'])
def test_a_response_that_trickles_is_a_timeout_at_the_deadline(served, framing):
    """Each byte comes in time, but the whole does not."""

    def drips(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\n' + framing + b'\r\n\r\n')
        while not peer.server.stop.wait(0.05):
            peer.send(b'1\r\nx\r\n' if b'chunked' in framing else b'x')

    server, client = served(drips)
    finished = time.monotonic() + 60
    with pytest.raises(MaybeSent):
        send_request(client, within_s=1.0)
    assert time.monotonic() < finished, 'it waited longer than the deadline'
    server.stop.set()


def test_a_request_body_that_is_read_slowly_is_a_timeout_at_the_deadline():
    """Each piece is read in time, but the whole is not; with a gevent socket."""
    here, there = gevent_socket.socketpair()
    taken = []

    def crumbs():
        while piece := there.recv(1 << 16):
            taken.append(len(piece))
            gevent.sleep(0.03)

    taking = gevent.spawn(crumbs)
    body = bytes(2 << 20)
    with pytest.raises(MaybeSent):
        send_request(
            http_client.PooledHttpClient(lambda within_s: here, name='x', host='x'),
            message.Request('POST', '/', [], body),
            within_s=0.3,
        )
    taking.join()
    there.close()
    assert sum(taken) < len(body)


def test_a_refused_connection_is_not_sent(served, tmp_path):
    server, client = served(responds_with(OK))
    server.close()
    with pytest.raises(NotSent, match='Connection refused'):
        send_request(client, POST)


def test_a_missing_unix_socket_is_not_sent(tmp_path):
    with pytest.raises(NotSent, match='No such file'):
        send_request(http_client.unix_client(str(tmp_path / 'none')), POST)


def test_an_unknown_host_name_is_not_sent():
    with pytest.raises(NotSent, match=r'nova\.invalid'):
        send_request(http_client.tcp_client('nova.invalid', 8775), POST)


def test_a_deadline_that_is_over_is_not_sent(served):
    server, client = served(responds_with(OK))
    with pytest.raises(NotSent, match='no time was left'):
        send_request(client, POST, within_s=0)
    assert server.connections == 0


def test_the_repr_names_the_service_and_its_idle_connections():
    assert (
        repr(http_client.tcp_client('127.0.0.1', 8775)) == '<HTTP client of http://127.0.0.1:8775, 0 idle connections>'
    )
    assert repr(http_client.unix_client('/x')) == '<HTTP client of unix:/x, 0 idle connections>'
