# SPDX-License-Identifier: Apache-2.0
"""One send_request with servers that misbehave, over TCP and a unix socket."""

import gzip
import hashlib
import threading
import time

import gevent
import pytest
from gevent import socket as waiting_socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, MaybeSent, NotSent
from metadata_wsgi.http import client as hop_
from metadata_wsgi.http import message
from tests.rawserver import RawServer, closes_after_the_request, closes_at_once, keeps_saying, says, stalls

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
GET = message.Request('GET', '/openstack', [])
POST = message.Request('POST', '/openstack/2013-04-04/password', [], b'secret')


@pytest.fixture(params=['tcp', 'unix'])
def served(request, tmp_path):
    """A function: the scripts of a server -> the server and a hop to it."""
    servers = []

    def serve(*scripts):
        server = RawServer(*scripts, path=str(tmp_path / 'socket') if request.param == 'unix' else None)
        servers.append(server)
        if request.param == 'unix':
            return server, hop_.unix_client(str(tmp_path / 'socket'))
        hop = hop_.tcp_client('127.0.0.1', server.port)
        return server, hop

    yield serve
    for server in servers:
        server.close()


def send_request(hop, request=GET, within_s=5.0):
    answer = hop.send_request(request, Deadline.after(within_s))
    return answer, b''.join(answer.body)


@pytest.mark.parametrize(
    ('said', 'status', 'headers', 'body'),
    [
        (OK, 200, [('content-length', '2')], b'ok'),
        (
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nX-Trailer: t\r\n\r\n',
            200, [('content-length', '2')], b'ok',
        ),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', 200, [('content-length', '0')], b''),
        (b'HTTP/1.1 204 No Content\r\n\r\n', 204, [], b''),
        (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 99\r\n\r\n', 304,
         [('etag', '"x"'), ('content-length', '99')], b''),
        (b'HTTP/1.1 302 Found\r\nLocation: http://10.6.6.6/\r\nContent-Length: 0\r\n\r\n', 302,
         [('location', 'http://10.6.6.6/'), ('content-length', '0')], b''),
        (b'HTTP/1.1 100 Continue\r\n\r\n' + OK, 200, [('content-length', '2')], b'ok'),
        (b'HTTP/1.1 418\r\nContent-Length: 0\r\n\r\n', 418, [('content-length', '0')], b''),
        (b'HTTP/1.1 200 OK\r\nX-Name: caf\xe9 \x85 x\r\nContent-Length: 2\r\n\r\nok', 200,
         [('x-name', 'caf\xe9 \x85 x'), ('content-length', '2')], b'ok'),
        (b'HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n', 200,
         [('set-cookie', 'a'), ('set-cookie', 'b'), ('content-length', '0')], b''),
        ((b'HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nDate: x\r\nServer: y\r\n'
         b'Content-Length: 0\r\n\r\n'), 200, [('date', 'x'), ('server', 'y'), ('content-length', '0')], b''),
        (b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n' % len(gzip.compress(b'x', mtime=0))
         + gzip.compress(b'x', mtime=0), 200,
         [('content-encoding', 'gzip'), ('content-length', '21')], gzip.compress(b'x', mtime=0)),
    ],
    ids=[
        'plain', 'chunked', 'empty', '204', '304', 'redirect', '100', 'no reason', 'latin-1', 'cookies', 'hop', 'gzip',
    ],
)  # fmt: skip
def test_the_answer_is_what_was_said(served, said, status, headers, body):
    _, hop = served(says(said))
    answer, content = send_request(hop)
    assert (answer.status, answer.headers, content) == (status, headers, body)


def test_an_answer_without_a_length_ends_with_the_connection(served):
    _, hop = served(says(b'HTTP/1.1 200 OK\r\n\r\nall of it'))
    answer, content = send_request(hop)
    assert (content, answer.headers) == (b'all of it', [('content-length', '9')])


def test_a_head_keeps_the_length_and_has_no_body(served):
    server, hop = served(keeps_saying(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n'))
    for _ in range(2):
        answer, content = send_request(hop, message.Request('HEAD', '/', []))
        assert (answer.headers, content) == ([('content-length', '999')], b'')
    assert server.connections == 1


@pytest.mark.parametrize(
    'target', ['/a%2fb//../x', '/%C3%A9', '/\xe9', '/?q=%zz', '/a;b?c#d', '//x', '/%00', '/"<>\\^`{|}']
)
def test_a_target_arrives_byte_for_byte(served, target):
    server, hop = served(says(OK))
    send_request(hop, message.Request('GET', target, []))
    assert server.requests[0].split(b'\r\n')[0] == b'GET ' + target.encode('latin-1') + b' HTTP/1.1'


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='\x7f'), max_size=200))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_target_arrives_byte_for_byte(echo, rest):
    server, hop = echo
    send_request(hop, message.Request('GET', '/' + rest, []))
    assert server.requests[-1].startswith(b'GET /' + rest.encode('latin-1') + b' HTTP/1.1\r\n')


@pytest.fixture(scope='module')
def echo():
    server = RawServer(keeps_saying(OK))
    yield server, hop_.tcp_client('127.0.0.1', server.port)
    server.close()


def test_a_request_arrives_with_its_headers_and_nothing_else(served):
    server, hop = served(says(OK))
    send_request(
        hop, message.Request('GET', '/', [('x-custom', 'caf\xe9'), ('accept', '*/*'), ('host', '169.254.169.254')])
    )
    head = server.requests[0].decode('latin-1').split('\r\n')[1:-2]
    host = f'127.0.0.1:{server.port}' if server.port else 'localhost'
    assert sorted(line.lower() for line in head) == [
        'accept-encoding: identity', 'accept: */*', f'host: {host}', 'x-custom: caf\xe9',
    ]  # fmt: skip


def test_the_guests_own_agent_and_encoding_are_kept(served):
    server, hop = served(says(OK))
    send_request(hop, message.Request('GET', '/', [('accept-encoding', 'gzip'), ('user-agent', 'Cloud-Init/25.1')]))
    head = server.requests[0].lower()
    assert (head.count(b'accept-encoding: gzip\r\n'), head.count(b'accept-encoding')) == (1, 1)
    assert (head.count(b'user-agent: cloud-init/25.1\r\n'), head.count(b'user-agent')) == (1, 1)


@pytest.mark.parametrize(('body', 'length'), [(b'secret', 6), (b'', 0), (b'\x00\xff' * 40000, 80000)])
def test_a_post_has_a_content_length_and_is_never_chunked(served, body, length):
    """Nova answers 500 to a chunked POST."""
    server, hop = served(says(OK))
    send_request(hop, message.Request('POST', '/', [('content-length', '77')], body))
    head, _, content = server.requests[0].partition(b'\r\n\r\n')
    assert content == body
    assert head.lower().count(b'content-length: %d' % length) == head.lower().count(b'content-length') == 1
    assert b'chunked' not in head.lower()


@pytest.mark.parametrize('length', [1 << 20, (1 << 20) + 1, 16 << 20])
@pytest.mark.parametrize('framing', ['length', 'chunked', 'close'])
def test_a_large_answer_passes_whole(served, length, framing):
    content = hashlib.sha256(str(length).encode()).digest() * (length // 32 + 1)
    content = content[:length]
    head = {
        'length': b'Content-Length: %d\r\n\r\n' % length,
        'chunked': b'Transfer-Encoding: chunked\r\n\r\n%x\r\n' % length,
        'close': b'\r\n',
    }[framing]
    tail = b'\r\n0\r\n\r\n' if framing == 'chunked' else b''
    _, hop = served(says(b'HTTP/1.1 200 OK\r\n' + head + content + tail))
    answer, got = send_request(hop, within_s=30)
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
    assert dict(answer.headers).get('content-length', str(length)) == str(length)


def test_a_large_answer_that_breaks_raises_while_it_is_passed_on(served):
    """The guest's server then cuts the guest's connection: a short answer never looks whole."""
    _, hop = served(says(b'HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n' + b'x' * 2000000))
    answer = hop.send_request(GET, Deadline.after(5))
    with pytest.raises(Exception, match='closed before the answer was complete'):
        b''.join(answer.body)
    answer.body.close()


def test_a_connection_is_kept(served):
    server, hop = served(keeps_saying(OK))
    for _ in range(3):
        send_request(hop)
    assert server.connections == 1


@pytest.mark.parametrize(
    'said',
    [
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n',
        b'HTTP/1.1 204 No Content\r\n\r\n',
        b'HTTP/1.1 304 Not Modified\r\n\r\n',
    ],
    ids=['chunked', '204', '304'],
)
def test_a_connection_is_kept_after_every_framing(served, said):
    server, hop = served(keeps_saying(said))
    for _ in range(3):
        send_request(hop)
    assert server.connections == 1


def closes_on_the_second_request(peer):
    peer.request()
    peer.send(OK)
    peer.request()


@pytest.mark.parametrize('script', [says(OK), closes_on_the_second_request], ids=['before', 'by the request'])
def test_a_kept_connection_that_was_closed_meanwhile_is_no_fault(served, script):
    server, hop = served(script, keeps_saying(OK))
    assert [send_request(hop)[1] for _ in range(3)] == [b'ok'] * 3
    assert server.connections == 2


@pytest.mark.parametrize(
    ('method', 'said'),
    [
        ('GET', OK),
        ('GET', b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'),
        ('HEAD', b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n'),
        ('GET', b'HTTP/1.1 204 No Content\r\n\r\n'),
    ],
    ids=['length', 'chunked', 'HEAD', '204'],
)
@pytest.mark.parametrize('late', [False, True], ids=['at once', 'later'])
def test_bytes_that_nobody_asked_for_are_never_the_next_guests_answer(served, method, said, late):
    stray = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray'
    sent = threading.Event()

    def script(peer):
        peer.request()
        peer.send(said if late else said + stray)
        if late:
            time.sleep(0.05)  # long enough that the answer was taken without it, in most runs
            peer.send(stray)
        sent.set()
        peer.request()

    server, hop = served(script, keeps_saying(OK))
    send_request(hop, message.Request(method, '/', []))
    assert sent.wait(5)
    assert send_request(hop)[1] == b'ok'
    assert server.connections == 2


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
    server, hop = served(says(OK))
    with pytest.raises(BadRequest):
        send_request(hop, request_)
    assert server.requests == []


def test_a_post_never_goes_on_a_kept_connection(served):
    server, hop = served(keeps_saying(OK))
    send_request(hop)
    send_request(hop, POST)
    assert server.connections == 2


@pytest.mark.parametrize(
    'script',
    [
        closes_at_once,
        closes_after_the_request,
        says(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf'),
        says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha'),
        says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nha\r\n'),
        says(b'HTTP/1.1 200 OK\r\nContent-Le'),
        says(b'SSH-2.0-OpenSSH_9.2p1\r\n'),
        says(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nhello, me'),
        says(b'HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok'),
        says(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'),
        says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'),
        says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n'),
        says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0_2\r\nok\r\n0\r\n\r\n'),
        says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n'),
        says(b'HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 0\r\n\r\n'),
        says(b'HTTP/1.1 200 OK\r\nX: ' + b'x' * 200000),
    ],
    ids=[
        'at once',
        'after the request',
        'mid body',
        'mid chunk',
        'between chunks',
        'mid head',
        'no http',
        'two lengths',
        'signed length',
        'length and chunks',
        'two codings',
        'signed chunk',
        'underscored chunk',
        'long chunk',
        'folded',
        'long head',
    ],
)
@pytest.mark.parametrize('request_', [GET, POST], ids=['GET', 'POST'])
def test_a_broken_answer_may_have_been_sent(served, script, request_):
    _, hop = served(script)
    with pytest.raises(MaybeSent):
        send_request(hop, request_)


@pytest.mark.parametrize(
    'script',
    [stalls, None],
    ids=['no answer', 'half an answer'],
)
def test_silence_ends_with_the_deadline(served, script):
    def half(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf')
        peer.server.stop.wait(20)

    _, hop = served(script or half)
    deadline = Deadline.after(0.3)
    with pytest.raises(MaybeSent):
        hop.send_request(GET, deadline)
    assert deadline.remaining_s() == 0.0


@pytest.mark.parametrize('framing', [b'Content-Length: 1000', b'Transfer-Encoding: chunked'], ids=['length', 'chunked'])
def test_an_answer_that_drips_ends_with_the_deadline(served, framing):
    """Each byte comes in time, but the whole does not."""

    def drips(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\n' + framing + b'\r\n\r\n')
        while not peer.server.stop.wait(0.05):
            peer.send(b'1\r\nx\r\n' if b'chunked' in framing else b'x')

    server, hop = served(drips)
    finished = time.monotonic() + 3
    with pytest.raises(MaybeSent):
        send_request(hop, within_s=0.4)
    assert time.monotonic() < finished, 'it waited on after the deadline'
    server.stop.set()


def test_a_body_that_is_taken_in_crumbs_ends_with_the_deadline():
    """Each piece is taken in time, but the whole is not; over the socket that waits through gevent."""
    here, there = waiting_socket.socketpair()
    taken = []

    def crumbs():
        while piece := there.recv(1 << 16):
            taken.append(len(piece))
            gevent.sleep(0.03)

    taking = gevent.spawn(crumbs)
    body = bytes(2 << 20)
    with pytest.raises(MaybeSent):
        send_request(
            hop_.HttpClient(lambda within_s: here, name='x', host='x'),
            message.Request('POST', '/', [], body),
            within_s=0.3,
        )
    taking.join()
    there.close()
    assert sum(taken) < len(body)


def test_nobody_there_is_not_sent(served, tmp_path):
    server, hop = served(says(OK))
    server.close()
    with pytest.raises(NotSent, match='Connection refused'):
        send_request(hop, POST)


def test_a_socket_that_does_not_exist_is_not_sent(tmp_path):
    with pytest.raises(NotSent, match='No such file'):
        send_request(hop_.unix_client(str(tmp_path / 'none')), POST)


def test_a_name_that_does_not_exist_is_not_sent():
    with pytest.raises(NotSent, match=r'nova\.invalid'):
        send_request(hop_.tcp_client('nova.invalid', 8775), POST)


def test_no_time_left_is_not_sent(served):
    server, hop = served(says(OK))
    with pytest.raises(NotSent, match='no time was left'):
        send_request(hop, POST, within_s=0)
    assert server.connections == 0


def test_a_hop_shows_where_it_leads():
    assert repr(hop_.tcp_client('127.0.0.1', 8775)) == '<Hop http://127.0.0.1:8775, 0 idle>'
    assert repr(hop_.unix_client('/x')) == '<Hop unix:/x, 0 idle>'
