# SPDX-License-Identifier: Apache-2.0
"""How the HTTP client reads responses: framing, streamed bodies, surplus bytes and malformed responses."""

import gzip
import hashlib
import threading
import time

import pytest

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import MaybeSent
from metadata_wsgi.http import message
from tests.rawserver import always_responds_with, closes_after_request, closes_at_once, responds_with

from .test_client import GET, OK, POST, send_request


@pytest.mark.parametrize(
    ('response', 'status', 'headers', 'body'),
    [
        (OK, 200, [('content-length', '2')], b'ok'),
        (
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nX-Trailer: t\r\n\r\n',
            200, [('content-length', '2')], b'ok',
        ),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', 200, [('content-length', '0')], b''),
        (b'HTTP/1.1 204 No Content\r\n\r\n', 204, [], b''),
        (b'HTTP/1.1 304 Not Modified\r\n\r\n', 304, [], b''),
        (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 99\r\n\r\n', 304,
         [('etag', '"x"'), ('content-length', '99')], b''),
        (b'HTTP/1.1 302 Found\r\nLocation: http://10.6.6.6/\r\nContent-Length: 0\r\n\r\n', 302,
         [('location', 'http://10.6.6.6/'), ('content-length', '0')], b''),
        (b'HTTP/1.1 100 Continue\r\n\r\n' + OK, 200, [('content-length', '2')], b'ok'),
        (b'HTTP/1.1 418\r\nContent-Length: 0\r\n\r\n', 418, [('content-length', '0')], b''),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok', 200, [('content-length', '2')], b'ok'),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok', 200, [('content-length', '2')], b'ok'),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: "x"\r\n\r\nok',
         200, [('content-length', '2'), ('etag', '"x"')], b'ok'),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: content-length\r\n\r\nok',
         200, [('content-length', '2')], b'ok'),
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
        'plain', 'chunked', 'empty', '204', '304 plain', '304', 'redirect', '100', 'no reason', 'equal lengths',
        'length list', 'order', 'length in Connection', 'latin-1', 'cookies', 'hop', 'gzip',
    ],
)  # fmt: skip
def test_the_response_is_what_the_server_sent(served, response, status, headers, body):
    _, client = served(responds_with(response))
    received, content = send_request(client)
    assert (received.status, received.headers, content) == (status, headers, body)


def test_a_response_without_a_length_ends_with_the_connection(served):
    _, client = served(responds_with(b'HTTP/1.1 200 OK\r\n\r\nall of it'))
    received, content = send_request(client)
    assert (content, received.headers) == (b'all of it', [('content-length', '9')])


def test_a_response_to_head_has_the_length_and_no_body(served):
    server, client = served(always_responds_with(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n'))
    for _ in range(2):
        received, content = send_request(client, message.Request('HEAD', '/', []))
        assert (received.headers, content) == ([('content-length', '999')], b'')
    assert server.connections == 1


@pytest.mark.parametrize('length', [1 << 20, (1 << 20) + 1, 16 << 20])
@pytest.mark.parametrize('framing', ['length', 'chunked', 'close'])
def test_a_large_response_is_streamed_whole(served, length, framing):
    content = hashlib.sha256(str(length).encode()).digest() * (length // 32 + 1)
    content = content[:length]
    head = {
        'length': b'Content-Length: %d\r\n\r\n' % length,
        'chunked': b'Transfer-Encoding: chunked\r\n\r\n%x\r\n' % length,
        'close': b'\r\n',
    }[framing]
    tail = b'\r\n0\r\n\r\n' if framing == 'chunked' else b''
    _, client = served(responds_with(b'HTTP/1.1 200 OK\r\n' + head + content + tail))
    received, got = send_request(client, within_s=30)
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
    assert dict(received.headers).get('content-length', str(length)) == str(length)


def test_a_large_response_that_breaks_raises_while_it_is_streamed(served):
    """The server then closes the connection of its client, which so notices that the body is incomplete."""
    _, client = served(responds_with(b'HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n' + b'x' * 2000000))
    received = client.send_request(GET, Deadline.after(5))
    with pytest.raises(Exception, match='closed before the response was complete'):
        b''.join(received.body)
    received.body.close()


@pytest.mark.parametrize(
    ('method', 'response'),
    [
        ('GET', OK),
        ('GET', b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'),
        ('HEAD', b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n'),
        ('GET', b'HTTP/1.1 204 No Content\r\n\r\n'),
    ],
    ids=['length', 'chunked', 'HEAD', '204'],
)
@pytest.mark.parametrize('late', [False, True], ids=['at once', 'later'])
def test_surplus_bytes_never_become_the_next_response_on_a_keepalive_connection(served, method, response, late):
    stray = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray'
    sent = threading.Event()

    def script(peer):
        peer.request()
        peer.send(response if late else response + stray)
        if late:
            time.sleep(0.05)  # long enough that the response was read without it, in most runs
            peer.send(stray)
        sent.set()
        if peer.request():
            peer.send(stray)

    server, client = served(script, always_responds_with(OK))
    send_request(client, message.Request(method, '/', []))
    assert sent.wait(60)
    assert send_request(client)[1] == b'ok'
    assert server.connections == 2


BAD_FRAMING = [
    (b'Content-Length: 5\r\nContent-Length: 9', 'several different lengths'),
    (b'Content-Length: 5, 9', 'several different lengths'),
    (b'Content-Length: +2', 'not a number'),
    (b'Content-Length: 2,', 'several different lengths'),
    (b'Content-Length:', 'not a number'),
    (b'Content-Length: 2\r\nTransfer-Encoding: chunked', 'both Transfer-Encoding and Content-Length'),
    *(
        (b'Transfer-Encoding: ' + coding, f'is not chunked: {coding.decode().lower()}')
        for coding in (
            b'gzip, chunked',
            b'identity, chunked',
            b'chunked, identity',
            b'identity',
            b'xchunked',
            b'chunked;q=1',
        )
    ),
    (b'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked', 'is not chunked: chunked, chunked'),
    (b'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity', 'is not chunked: chunked, identity'),
    (b'Transfer-Encoding:', 'is not chunked: '),
]


@pytest.mark.parametrize(('headers', 'reason'), BAD_FRAMING, ids=[headers.decode() for headers, _ in BAD_FRAMING])
def test_a_response_with_ambiguous_framing_is_an_error_that_names_the_reason(served, headers, reason):
    """And the next request gets another connection: what follows is never taken for its response."""
    server, client = served(
        responds_with(b'HTTP/1.1 200 OK\r\n' + headers + b'\r\n\r\n2\r\nok\r\n0\r\n\r\n'), always_responds_with(OK)
    )
    with pytest.raises(MaybeSent, match=reason):
        send_request(client)
    assert send_request(client)[1] == b'ok'
    assert server.connections == 2


def test_a_transfer_encoding_in_a_response_of_http_1_0_is_an_error(served):
    _, client = served(responds_with(b'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'))
    with pytest.raises(MaybeSent, match=r'HTTP/1\.0'):
        send_request(client)


@pytest.mark.parametrize('headers', [b'Transfer-Encoding: chunked', b'Content-Length: 5', b'Transfer-Encoding: gzip'])
@pytest.mark.parametrize('status', [b'204 No Content', b'304 Not Modified'])
def test_a_204_or_304_with_framing_has_no_body_and_its_surplus_is_never_the_next_response(served, status, headers):
    """eventlet sends a 204 with chunked framing, and the last chunk after it."""
    surplus = b'HTTP/1.1 ' + status + b'\r\n' + headers + b'\r\n\r\n0\r\n\r\n'
    _, client = served(responds_with(surplus), always_responds_with(OK))
    assert send_request(client)[1] == b''
    assert send_request(client)[1] == b'ok'


@pytest.mark.parametrize(
    'script',
    [
        closes_at_once,
        closes_after_request,
        responds_with(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf'),
        responds_with(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha'),
        responds_with(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nha\r\n'),
        responds_with(b'HTTP/1.1 200 OK\r\nContent-Le'),
        responds_with(b'SSH-2.0-OpenSSH_9.2p1\r\n'),
        responds_with(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nhello, me'),
        responds_with(b'HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok'),
        responds_with(
            b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'
        ),
        responds_with(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'),
        responds_with(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n'),
        responds_with(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0_2\r\nok\r\n0\r\n\r\n'),
        responds_with(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n'),
        responds_with(b'HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 0\r\n\r\n'),
        responds_with(b'HTTP/1.1 200 OK\r\nX: ' + b'x' * 200000),
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
def test_a_broken_response_is_maybe_sent(served, script, request_):
    _, client = served(script)
    with pytest.raises(MaybeSent):
        send_request(client, request_)
