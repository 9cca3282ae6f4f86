# SPDX-License-Identifier: Apache-2.0
"""The worker's requests: bodies, heads, and where one ends; ``tests/wire`` and ``tests/e2e`` have the whole."""

import io

import gevent
import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders, ParseException
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metadata_wsgi.server import master, request_parser


class Dripping:
    """A body that is still coming."""

    def read(self, size=None):
        gevent.sleep(60)


class RawSocket:
    """A socket that says ``data``, so much at a time."""

    def __init__(self, data, recv_size=8192):
        self._data = io.BytesIO(data)
        self._at_once = recv_size

    def recv(self, size):
        return self._data.read(min(size, self._at_once))


def requests(data, **kwargs):
    cfg = Config()
    for name, value in master.STRICT.items():
        cfg.set(name, value)
    return request_parser.RequestStream(cfg, RawSocket(data, **kwargs), '')


class Over:
    """Counts how often a body's turn was over."""

    times = 0

    def __call__(self):
        self.times += 1


def test_a_body_that_drips_too_long_ends():
    over = Over()
    with pytest.raises(TimeoutError):
        request_parser.Body(Dripping(), over, within_s=0.01).read(5)
    assert over.times == 1


def test_a_body_is_read_in_each_way_that_pep_3333_knows():
    def body():
        return request_parser.Body(io.BytesIO(b'a\nb\nc'), Over())

    assert body().read() == b'a\nb\nc'
    assert body().readline() == b'a\n'
    assert body().readlines() == [b'a\n', b'b\n', b'c']
    assert list(body()) == [b'a\n', b'b\n', b'c']


POST = b'POST / HTTP/1.1\r\nHost: x\r\n'


@pytest.mark.parametrize(
    ('data', 'read', 'closes'),
    [
        (POST + b'Content-Length: 5\r\n\r\nhello', 5, False),
        (POST + b'Content-Length: 5000\r\n\r\n' + b'a' * 5000, 3, True),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n', 6, False),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n', 0, True),
        (POST + b'\r\n', 0, False),
        (POST + b'Connection: x , Close\r\n\r\n', 0, True),
        (POST + b'Connection: x\r\nConnection: close\r\n\r\n', 0, True),
        (POST + b'Connection: closed\r\n\r\n', 0, False),
    ],
)
def test_a_connection_goes_on_only_where_the_next_request_begins_at_a_known_place(data, read, closes):
    head = requests(data).next()
    head.body.read(read)
    assert (head.must_close or head.unread) is closes


def test_a_head_is_bounded_as_a_whole():
    """Not by the number of fields times the size of each."""
    with pytest.raises(LimitRequestHeaders):
        requests(POST + b'X-A: ' + b'a' * 16000 + b'\r\n' + (b'X-B: ' + b'b' * 16000 + b'\r\n') * 5).next()


CLOUD_INIT = (
    b'GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/25.1\r\n'
    b'Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n'
)


def test_what_guests_send_is_plain():
    head = request_parser.parse_simple(CLOUD_INIT)
    assert (head.must_close, head.expects_continue, head.expects_body, head.unread) == (False, False, False, False)
    assert head.fields.pop('wsgi.input').read() == b''
    assert head.fields == {
        'REQUEST_METHOD': 'GET', 'PATH_INFO': '/openstack/latest/meta_data.json', 'QUERY_STRING': '',
        'RAW_URI': '/openstack/latest/meta_data.json', 'SERVER_PROTOCOL': 'HTTP/1.1', 'HTTP_HOST': '169.254.169.254',
        'HTTP_USER_AGENT': 'Cloud-Init/25.1', 'HTTP_ACCEPT_ENCODING': 'gzip, deflate', 'HTTP_ACCEPT': '*/*',
        'HTTP_CONNECTION': 'keep-alive',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('was', 'becomes'),
    [
        (b'GET', b'POST'),
        (b'GET', b'get'),
        (b'HTTP/1.1', b'HTTP/1.0'),
        (b'GET /', b'\r\nGET /'),
        (b'GET /', b'GET //'),
        (b'GET /', b'GET http://x/'),
        (b'.json', b'.json#x'),
        (b'.json', b'.json\xe9'),
        (b'Accept:', b'Host:'),
        (b'Accept:', b'X_Real_IP:'),
        (b'Accept:', b'Content-Length:'),
        (b'Accept:', b'Transfer-Encoding:'),
        (b'Accept:', b'Expect:'),
        (b'Accept:', b'Upgrade:'),
        (b'Accept:', b'TE:'),
        (b'Accept:', b'Accept :'),
        (b'keep-alive', b'X-Instance-ID'),
        (b'keep-alive', b'close, TE'),
        (b'\r\n\r\n', b'\r\n'),
        (b'\r\n\r\n', b'\r\n\r\nG'),
    ],
)
def test_whatever_is_not_as_plain_is_left_to_gunicorn(was, becomes):
    assert CLOUD_INIT.count(was) >= 1
    assert request_parser.parse_simple(CLOUD_INIT.replace(was, becomes, 1)) is None


words = st.sampled_from(
    ['Host', 'Accept', 'Connection', 'close', 'Keep-Alive', 'X-Forwarded-For', 'X_A', 'x', '10.1.1.2', '*/*', '/', '//',
     '?', '%2f', '%e9', '%', ';', '&', '=', '.', '..', ' ', '\t', '\r\n', '\0', '\xe9', '#', '[', ']', '@', ':', '\x7f']
)  # fmt: skip
texts = st.lists(words, max_size=6).map(''.join)
names = st.sampled_from(['Host', 'Accept', 'Connection', 'X-A', 'x-a', 'X-B', 'Range', 'Content-Type', 'Expect', 'X_A'])
lines = st.tuples(names, st.sampled_from([': ', ':', ':\t']), texts).map(''.join)


@given(st.sampled_from(['GET', 'HEAD', 'POST', 'OPTIONS']), texts, st.lists(lines, max_size=4), st.integers(0, 3))
@example('GET', 'a?b', ['Connection: Close'], 0)
@settings(max_examples=1000, deadline=None)
def test_what_is_plain_gunicorn_reads_in_the_same_way(method, target, headers, cut):
    """In one piece and in many: the second way no head is plain."""
    text = '\r\n'.join([f'{method} /{target} HTTP/1.1', *headers, '', ''])
    data = text.encode('latin-1')
    head = request_parser.parse_simple(data[: len(data) - cut])
    if head is None:
        return
    judged = requests(data, recv_size=5).next()
    assert judged.fields.pop('wsgi.input').read() == head.fields.pop('wsgi.input').read() == b''
    assert judged.fields == head.fields
    assert judged.must_close == head.must_close
    assert (judged.expects_continue, judged.expects_body, judged.unread) == (False, False, False)


def test_requests_that_come_together_are_read_one_after_the_other():
    """Plain or not, and in whatever pieces."""
    post = POST + b'Content-Length: 2\r\n\r\nhi'
    for recv_size in (5, 50, 8192):
        arriving = requests(CLOUD_INIT + post + CLOUD_INIT + CLOUD_INIT, recv_size=recv_size)
        seen = []
        while head := arriving.next():
            seen.append((head.fields['REQUEST_METHOD'], head.fields['wsgi.input'].read()))
        assert seen == [('GET', b''), ('POST', b'hi'), ('GET', b''), ('GET', b'')]


@pytest.mark.parametrize(
    'first',
    [
        CLOUD_INIT.replace(b'keep-alive', b'close'),
        CLOUD_INIT.replace(b'HTTP/1.1', b'HTTP/1.0').replace(b'Connection: keep-alive\r\n', b''),
        POST + b'Content-Length: 2\r\n\r\n',
    ],
    ids=['close', '1.0', 'a body that was not read'],
)
def test_what_follows_where_nothing_may_is_not_looked_at(first):
    arriving = requests(first + CLOUD_INIT)
    assert arriving.next() is not None
    assert arriving.next() is None


def test_a_connection_that_ends_within_a_head_has_no_request_and_garbage_is_refused():
    assert requests(CLOUD_INIT[:-1]).next() is None
    assert requests(b'').next() is None
    with pytest.raises(ParseException):
        requests(b'\0' + CLOUD_INIT).next()
