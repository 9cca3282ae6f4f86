# SPDX-License-Identifier: Apache-2.0
"""Request headers, bodies, and the end of a request; ``tests/wire`` and ``tests/e2e`` test whole programs."""

import io
import time

import gevent
import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders, ParseException, UnsupportedTransferCoding
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metadata_wsgi import limits
from metadata_wsgi.http import head_parser
from metadata_wsgi.server import master, request_parser


class SlowBody:
    """A body that arrives after ``seconds``."""

    def __init__(self, seconds=60.0):
        self._seconds = seconds

    def read(self, size=None):
        gevent.sleep(self._seconds)
        return b'hello'


class FakeSocket:
    """A socket on which ``data`` arrives, at most ``recv_size`` bytes at a time."""

    def __init__(self, data, recv_size=8192):
        self._data = io.BytesIO(data)
        self._recv_size = recv_size
        self.sizes = []

    def recv(self, size):
        self.sizes.append(size)
        return self._data.read(min(size, self._recv_size))


@pytest.fixture(params=['auto', 'python'], autouse=True, scope='module')
def parser(request):
    """Runs every test with gunicorn_h1c, if it is installed, and with the parsers in Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PARSER, 'http_parser', request.param)
        if request.param == 'python':
            for name in ('parse_request', 'IncompleteError', 'ParseError'):
                patch.setattr(request_parser, name, getattr(head_parser, f'_{name}'))
        yield


PARSER = {}


def gunicorn_settings(**more):
    cfg = Config()
    for name, value in {**master.STRICT, **PARSER, **more}.items():
        cfg.set(name, value)
    return cfg


def requests(data, address='', parse=None, more_settings=None, **kwargs):
    cfg = gunicorn_settings(**(more_settings or {}))
    return request_parser.RequestStream(cfg, FakeSocket(data, **kwargs), address, parse)


def next_request(stream):
    return stream.next() if stream.wait_for_data() else None


class CallCounter:
    count = 0

    def __call__(self):
        self.count += 1


def test_a_timeout_ends_a_slow_body():
    progress = CallCounter()
    with pytest.raises(TimeoutError, match=r'^the request body did not arrive in time$'):
        make_body(SlowBody(), deadline_s=time.monotonic() + 0.01, on_progress=progress).read(5)
    assert progress.count == 1


def test_a_body_that_arrives_after_the_deadline_is_a_timeout():
    with pytest.raises(TimeoutError):
        make_body(SlowBody(0.5), deadline_s=time.monotonic() - 1).read(5)


def test_a_body_that_arrives_within_the_timeout_is_read():
    assert make_body(SlowBody(0.01)).read(5) == b'hello'


def test_the_timeout_of_a_body_starts_with_the_first_read(monkeypatch):
    monkeypatch.setattr(limits, 'BODY_TIMEOUT_S', 0.01)
    body = make_body(SlowBody())
    with pytest.raises(TimeoutError):
        body.read(5)


def test_a_body_calls_on_first_read_once_and_only_if_it_is_read():
    first_read = CallCounter()
    body = make_body(io.BytesIO(b'a\nb'), on_first_read=first_read)
    assert first_read.count == 0
    assert body.readline() + body.read() == b'a\nb'
    assert first_read.count == 1


def make_body(body, deadline_s=float('inf'), on_first_read=lambda: None, on_progress=lambda: None):
    return request_parser.Body(body, deadline_s=deadline_s, on_first_read=on_first_read, on_progress=on_progress)


def test_a_body_has_the_methods_of_pep_3333():
    def body():
        return make_body(io.BytesIO(b'a\nb\nc'))

    assert body().read() == b'a\nb\nc'
    assert body().readline() == b'a\n'
    assert body().readlines() == [b'a\n', b'b\n', b'c']
    assert list(body()) == [b'a\n', b'b\n', b'c']
    assert (body().read(1), body().readline(1), body().readlines(1)) == (b'a', b'a', [b'a\n'])


POST = b'POST / HTTP/1.1\r\nHost: x\r\n'


@pytest.mark.parametrize(
    ('data', 'read', 'closes'),
    [
        (POST + b'Content-Length: 5\r\n\r\nhello', 5, False),
        (POST + b'Content-Length: 1\r\n\r\nx', 0, True),
        (POST + b'Content-Length: 5000\r\n\r\n' + b'a' * 5000, 3, True),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n', 6, False),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n', 0, True),
        (POST + b'\r\n', 0, False),
        (POST + b'Connection: x , Close\r\n\r\n', 0, True),
        (POST + b'Connection: x\r\nConnection: close\r\n\r\n', 0, True),
        (POST + b'Connection: closed\r\n\r\n', 0, False),
    ],
)
def test_an_unread_body_or_connection_close_ends_keepalive(data, read, closes):
    request = next_request(requests(data))
    request.body.read(read)
    assert (request.must_close or request.has_unread_body) is closes


def test_a_body_of_known_length_is_received_in_large_pieces():
    sock = FakeSocket(POST + b'Content-Length: 100000\r\n\r\n' + b'x' * 100_000, recv_size=200_000)
    request = next(request_parser.Parser(gunicorn_settings(), sock, ''))
    assert len(request.body.read()) == 100_000
    assert max(sock.sizes) > 50_000


def test_a_malformed_body_ends_keepalive():
    request = next_request(requests(POST + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n'))
    with pytest.raises(ParseException):
        request.body.read()
    assert request.has_unread_body


@pytest.mark.parametrize('line', [b'', b'Connection: close\r\n'])
def test_gunicorns_parser_reads_no_request_after_an_unread_body(line):
    """It would otherwise read the rest of the body, as long as the client sends."""
    data = POST + line + b'Content-Length: 2\r\n\r\nhi' + CLOUD_INIT
    parser = request_parser.Parser(gunicorn_settings(), FakeSocket(data), '')
    next(parser)
    with pytest.raises(StopIteration):
        next(parser)


def test_the_size_of_the_whole_header_is_limited():
    """Not only the number of fields and the size of each."""
    with pytest.raises(LimitRequestHeaders):
        next_request(requests(POST + b'X-A: ' + b'a' * 16000 + b'\r\n' + (b'X-B: ' + b'b' * 16000 + b'\r\n') * 5))


@pytest.mark.parametrize(
    'coding',
    [
        'identity, chunked', 'identity', 'gzip, chunked', 'deflate,chunked', 'chunked, chunked', 'x', '', 'chunked;q=1',
        'Xchunked', 'chunked\xa0', 'chunked\x0b',
    ],
)  # fmt: skip
def test_a_transfer_coding_other_than_chunked_is_refused(coding):
    with pytest.raises((UnsupportedTransferCoding, ParseException)):
        next_request(requests(POST + f'Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n'.encode('latin-1')))


@pytest.mark.parametrize('coding', ['chunked', 'Chunked', ' \tchunked\t '])
def test_chunked_is_accepted_in_any_case_and_with_whitespace_around_it(coding):
    data = POST + f'Transfer-Encoding:{coding}\r\n\r\n2\r\nhi\r\n0\r\n\r\n'.encode()
    assert next_request(requests(data)).fields['wsgi.input'].read() == b'hi'


@pytest.mark.parametrize('digits', ['5', '000000000000000005'])
def test_a_content_length_of_up_to_18_digits_is_accepted(digits):
    data = POST + f'Content-Length: {digits}\r\n\r\nhello'.encode()
    assert next_request(requests(data)).fields['wsgi.input'].read() == b'hello'


@pytest.mark.parametrize('digits', ['0000000000000000005', '1' * 30])
def test_a_content_length_of_more_digits_is_refused(digits):
    """In 64 bits it would be another number."""
    with pytest.raises(ParseException, match=r'(?i)content-length'):
        next_request(requests(POST + f'Content-Length: {digits}\r\n\r\nhello'.encode()))


def test_an_http_version_other_than_1_0_and_1_1_is_refused():
    with pytest.raises(ParseException, match=r'\(1, 2\)' if PARSER['http_parser'] == 'python' else None):
        next_request(requests(CLOUD_INIT.replace(b'HTTP/1.1', b'HTTP/1.2')))


@pytest.mark.parametrize(('expect', 'expects_continue'), [(b'Expect: 100-continue\r\n', True), (b'', False)])
def test_a_request_with_expect_waits_for_100_continue(expect, expects_continue):
    request = next_request(requests(POST + expect + b'Content-Length: 2\r\n\r\n'))
    assert request.expects_continue is expects_continue
    assert request.expects_body


def test_two_transfer_encoding_headers_are_refused():
    with pytest.raises(UnsupportedTransferCoding, match='identity, chunked'):
        next_request(requests(POST + b'Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'))


CLOUD_INIT = (
    b'GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/25.1\r\n'
    b'Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n'
)


def test_the_request_of_cloud_init_is_simple():
    request = request_parser.parse_simple(CLOUD_INIT)
    assert (request.must_close, request.expects_continue, request.expects_body, request.has_unread_body) == (False,) * 4
    assert request.fields.pop('wsgi.input').read() == b''
    assert request.fields == {
        'REQUEST_METHOD': 'GET', 'PATH_INFO': '/openstack/latest/meta_data.json', 'QUERY_STRING': '',
        'RAW_URI': '/openstack/latest/meta_data.json', 'SERVER_PROTOCOL': 'HTTP/1.1', 'HTTP_HOST': '169.254.169.254',
        'HTTP_USER_AGENT': 'Cloud-Init/25.1', 'HTTP_ACCEPT_ENCODING': 'gzip, deflate', 'HTTP_ACCEPT': '*/*',
        'HTTP_CONNECTION': 'keep-alive',
    }  # fmt: skip


def test_a_repeated_request_shares_nothing_that_a_filter_may_change():
    first, second = request_parser.parse_repeated(CLOUD_INIT), request_parser.parse_repeated(CLOUD_INIT)
    assert first.fields.pop('wsgi.input') is not second.fields['wsgi.input']
    first.fields.clear()
    assert second.fields['HTTP_HOST'] == '169.254.169.254'
    assert request_parser.parse_repeated(CLOUD_INIT).fields.keys() == second.fields.keys()


@pytest.mark.parametrize('size', [10, 2000])
def test_a_repeated_request_is_parsed_as_the_first_one(size):
    data = CLOUD_INIT.replace(b'25.1', b'x' * size)
    found = [request_parser.parse_repeated(data) for _ in range(2)] + [request_parser.parse_simple(data)]
    assert {one.fields['HTTP_USER_AGENT'] for one in found} == {'Cloud-Init/' + 'x' * size}
    malformed = data.replace(b'Host:', b'Host')
    assert [request_parser.parse_repeated(malformed) for _ in range(2)] == [None, None]


@pytest.mark.parametrize(('size', 'hits'), [(1024, 1), (1025, 0)])
def test_only_a_request_of_up_to_1_kib_is_cached(size, hits):
    data = CLOUD_INIT.replace(b'25.1', b'y' * (size - len(CLOUD_INIT) + 4))
    assert len(data) == size
    request_parser.parse_repeated(data)
    before = request_parser._cached_fields.cache_info().hits
    request_parser.parse_repeated(data)
    assert request_parser._cached_fields.cache_info().hits - before == hits


def test_the_given_function_parses_a_simple_request():
    """Only it makes a repeated request cheap."""
    request = request_parser.parse_simple(CLOUD_INIT)
    assert next_request(requests(CLOUD_INIT, parse={CLOUD_INIT: request}.get)) is request


def test_the_environ_keys_of_a_request_with_a_body():
    data = (
        b'POST /a%e9?b=%20 HTTP/1.0\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nX-A: 1\r\n'
        b'X-B: z\r\nX-A: 2\r\n\r\nhi'
    )
    request = next_request(requests(data))
    assert request.fields.pop('wsgi.input').read() == b'hi'
    assert request.fields == {
        'REQUEST_METHOD': 'POST', 'PATH_INFO': '/a\xe9', 'QUERY_STRING': 'b=%20', 'RAW_URI': '/a%e9?b=%20',
        'SERVER_PROTOCOL': 'HTTP/1.0', 'HTTP_HOST': 'x', 'CONTENT_TYPE': 'text/plain', 'CONTENT_LENGTH': '2',
        'HTTP_X_A': '1,2', 'HTTP_X_B': 'z',
    }  # fmt: skip


@pytest.mark.parametrize(('address', 'is_trusted'), [(('10.0.0.1', 1), True), (('10.0.0.2', 1), False)])
def test_only_a_trusted_peer_may_set_a_forwarder_header(address, is_trusted):
    """gunicorn compares the address of the peer."""
    more_settings = {'forwarded_allow_ips': '10.0.0.1', 'forwarder_headers': 'REMOTE_USER'}
    data = b'GET / HTTP/1.1\r\nHost: x\r\nRemote_User: me\r\n\r\n'
    fields = next_request(requests(data, address, more_settings=more_settings)).fields
    assert ('HTTP_REMOTE_USER' in fields) is is_trusted


@pytest.mark.parametrize(
    ('part', 'replacement'),
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
def test_any_other_request_is_left_to_gunicorns_parser(part, replacement):
    assert CLOUD_INIT.count(part) >= 1
    assert request_parser.parse_simple(CLOUD_INIT.replace(part, replacement, 1)) is None


words = st.sampled_from(
    ['Host', 'Accept', 'Connection', 'close', 'Keep-Alive', 'X-Forwarded-For', 'X_A', 'x', '10.1.1.2', '*/*', '/', '//',
     '?', '%2f', '%e9', '%', ';', '&', '=', '.', '..', ' ', '\t', '\r\n', '\0', '\xe9', '#', '[', ']', '@', ':', '\x7f']
)  # fmt: skip
texts = st.lists(words, max_size=6).map(''.join)
names = st.sampled_from(['Host', 'Accept', 'Connection', 'X-A', 'x-a', 'X-B', 'Range', 'Content-Type', 'Expect', 'X_A'])
lines = st.tuples(names, st.sampled_from([': ', ':', ':\t']), texts).map(''.join)


@pytest.mark.not_traced
@given(st.sampled_from(['GET', 'HEAD', 'POST', 'OPTIONS']), texts, st.lists(lines, max_size=4), st.integers(0, 3))
@example('GET', 'a?b', ['Connection: Close'], 0)
@settings(max_examples=1000, deadline=None)
def test_gunicorns_parser_reads_a_simple_request_in_the_same_way(method, target, headers, cut):
    """gunicorn's parser gets it in small pieces, so that no header is simple."""
    text = '\r\n'.join([f'{method} /{target} HTTP/1.1', *headers, '', ''])
    data = text.encode('latin-1')
    simple = request_parser.parse_simple(data[: len(data) - cut])
    if simple is None:
        return
    request = next_request(requests(data, recv_size=5))
    assert request.fields.pop('wsgi.input').read() == simple.fields.pop('wsgi.input').read() == b''
    assert request.fields == simple.fields
    assert request.must_close == simple.must_close
    assert (request.expects_continue, request.expects_body, request.has_unread_body) == (False, False, False)


def test_pipelined_requests_are_read_in_order():
    """Simple or not, and in pieces of any size."""
    post = POST + b'Content-Length: 2\r\n\r\nhi'
    for recv_size in (5, 50, 8192):
        stream = requests(CLOUD_INIT + post + CLOUD_INIT + CLOUD_INIT, recv_size=recv_size)
        seen = []
        while request := next_request(stream):
            seen.append((request.fields['REQUEST_METHOD'], request.fields['wsgi.input'].read()))
        assert seen == [('GET', b''), ('POST', b'hi'), ('GET', b''), ('GET', b'')]


@pytest.mark.parametrize(
    'first',
    [
        CLOUD_INIT.replace(b'keep-alive', b'close'),
        CLOUD_INIT.replace(b'HTTP/1.1', b'HTTP/1.0').replace(b'Connection: keep-alive\r\n', b''),
        POST + b'Content-Length: 2\r\n\r\n',
    ],
    ids=['connection-close', 'http-1.0', 'unread-body'],
)
def test_data_after_the_last_request_of_a_connection_is_not_parsed(first):
    stream = requests(first + CLOUD_INIT)
    assert next_request(stream) is not None
    assert not stream.wait_for_data()


def test_an_incomplete_header_is_no_request_and_a_malformed_one_is_refused():
    assert next_request(requests(CLOUD_INIT[:-1])) is None
    assert next_request(requests(b'')) is None
    with pytest.raises(ParseException):
        next_request(requests(b'\0' + CLOUD_INIT))
