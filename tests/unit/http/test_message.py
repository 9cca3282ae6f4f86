# SPDX-License-Identifier: Apache-2.0
"""Requests and responses as values; ``test_client`` has the sockets."""

import io
import tracemalloc

import gevent
import pytest
from gevent import monkey
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, RequestTimeout
from metadata_wsgi.http import header_names, message


@pytest.mark.parametrize(
    ('raw', 'target'),
    [
        ('/openstack', '/openstack'),
        ('/a%2fb//../x', '/a%2fb//../x'),
        ('/%C3%A9\xe9', '/%C3%A9\xe9'),
        ('/?q=%zz&&', '/?q=%zz&&'),
        ('//10.6.6.6/x', '//10.6.6.6/x'),
        ('http://10.6.6.6/x?y', '/x?y'),
        ('HTTPS://u:p@10.6.6.6', '/'),
        ('http://10.6.6.6?y', '/?y'),
    ],
)
def test_the_raw_target_is_used_in_origin_form(raw, target):
    """A client cannot choose the host: the authority of an absolute URI is dropped."""
    assert message.target({'RAW_URI': raw}) == target


@pytest.mark.parametrize(
    'raw', ['*', '', '10.6.6.6:80', 'ftp://10.6.6.6/', 'x/y', '/a b', '/a\x7f', '/a\r\nX: y', '/\t']
)
def test_an_invalid_target_is_a_bad_request(raw):
    with pytest.raises(BadRequest):
        message.target({'RAW_URI': raw})


@pytest.mark.parametrize(
    ('path', 'query', 'target'),
    [
        ('/a b', '', '/a%20b'),
        ('/\xc3\xa9', 'q=%zz', '/%C3%A9?q=%zz'),
        ('/a?b', '', '/a%3Fb'),
        ("/-._~!$&'()*+,;=:@", '', "/-._~!$&'()*+,;=:@"),
    ],
)
def test_a_target_that_the_server_decoded_is_quoted_again(path, query, target):
    assert message.target({'SCRIPT_NAME': '', 'PATH_INFO': path, 'QUERY_STRING': query}) == target


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='\x7f')))
def test_the_raw_path_is_never_changed(rest):
    assert message.target({'RAW_URI': '/' + rest}) == '/' + rest


NAMES = st.sampled_from([*sorted(header_names.HOP_BY_HOP), 'accept', 'x-custom', 'content-type', 'x-named'])
VALUES = st.sampled_from(['close', 'keep-alive', 'x-named', 'X-Custom, te', ' accept ,', '', 'chunked'])


@given(st.dictionaries(NAMES.filter(lambda name: name != 'content-type'), VALUES))
def test_hop_by_hop_headers_are_dropped(all_headers):
    """Also where ``Connection`` names it, in whatever case."""
    named = {token.strip().lower() for token in all_headers.get('connection', '').split(',')}
    passed = message.headers({header_names.environ_key(name): value for name, value in all_headers.items()})
    assert passed == [
        (name, value) for name, value in all_headers.items() if name not in header_names.HOP_BY_HOP | named
    ]


def test_the_headers_of_an_environ():
    environ = {
        'HTTP_ACCEPT': '*/*', 'HTTP_X_CUSTOM': '\xe9', 'CONTENT_TYPE': 'text/plain', 'CONTENT_LENGTH': '4',
        'HTTP_CONNECTION': 'close, X-Secret', 'HTTP_X_SECRET': '1', 'REMOTE_ADDR': '10.1.1.2',
        'metadata_wsgi.source': 1,
    }  # fmt: skip
    assert message.headers(environ) == [('accept', '*/*'), ('x-custom', '\xe9'), ('content-type', 'text/plain')]


@pytest.mark.parametrize(
    ('environ', 'expected'),
    [
        ({'CONTENT_LENGTH': '4'}, b'pass'),
        ({'CONTENT_LENGTH': '0'}, b''),
        ({'CONTENT_LENGTH': ''}, b''),
        ({}, b''),
        ({'wsgi.input_terminated': True}, b'password'),
    ],
    ids=['by length', 'zero', 'empty', 'no length', 'chunked'],
)
def test_the_whole_body_is_read(environ, expected):
    assert message.body({'wsgi.input': io.BytesIO(b'password'), **environ}, 8) == expected


@pytest.mark.parametrize('environ', [{'CONTENT_LENGTH': '9'}, {'wsgi.input_terminated': True}])
def test_a_body_above_the_limit_is_too_large(environ):
    with pytest.raises(message.TooLarge, match='at most 8 bytes'):
        message.body({'wsgi.input': io.BytesIO(b'passwords'), **environ}, 8)


def test_an_incomplete_body_is_a_bad_request():
    with pytest.raises(BadRequest, match='ended before its Content-Length'):
        message.body({'wsgi.input': io.BytesIO(b'pass'), 'CONTENT_LENGTH': '8'}, 8)


@pytest.mark.parametrize(
    ('method', 'body', 'is_retryable'),
    [('GET', b'', True), ('HEAD', b'', True), ('GET', b'x', False), ('POST', b'', False), ('DELETE', b'', False)],
)
def test_only_get_and_head_without_a_body_are_retryable(method, body, is_retryable):
    assert message.Request(method, '/', [], body).is_retryable is is_retryable


@pytest.mark.parametrize(('reason', 'status'), [('OK', '200 OK'), ('', '200 ')])
def test_a_status_without_a_reason_ends_with_a_space(reason, status):
    """PEP 3333 requires it."""
    statuses = []
    message.Response(200, reason, [], [])({}, lambda status, headers: statuses.append(status))
    assert statuses == [status]


def test_connection_cannot_remove_a_reserved_header():
    environ = {
        'HTTP_CONNECTION': 'X-Instance-ID, x_tenant_id, Accept, close',
        'HTTP_X_INSTANCE_ID': 'instance-a',
        'HTTP_X_TENANT_ID': 'project-a',
        'HTTP_ACCEPT': '*/*',
        'HTTP_USER_AGENT': 'x',
    }
    assert dict(message.headers(environ)) == {
        'x-instance-id': 'instance-a',
        'x-tenant-id': 'project-a',
        'user-agent': 'x',
    }


class Broken:
    def read(self, size):
        raise ValueError('malformed')


@pytest.mark.parametrize('environ', [{'CONTENT_LENGTH': '5'}, {'wsgi.input_terminated': True}])
def test_a_body_that_the_server_cannot_read_is_a_bad_request(environ):
    with pytest.raises(BadRequest):
        message.body({**environ, 'wsgi.input': Broken()}, 10)


def test_the_header_name_caches_are_bounded():
    """A client may send a new name of 16 KB with each request."""
    tracemalloc.start()
    for number in range(2000):
        key = f'HTTP_{"A" * 16000}{number}'
        header_names.is_reserved_key(key)
        message.headers({key: 'x'})
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert allocated < 20 << 20


class Slow:
    """A body that never arrives; ``error`` is what the server raises then."""

    def __init__(self, error=None):
        self.error = error

    def read(self, size):
        if self.error:
            raise self.error
        gevent.sleep(20)


@pytest.mark.parametrize('environ', [{'CONTENT_LENGTH': '5'}, {'wsgi.input_terminated': True}])
@pytest.mark.parametrize('stream', [Slow(), Slow(TimeoutError('of the server'))], ids=['deadline', 'server'])
def test_a_body_that_does_not_arrive_in_time_is_a_request_timeout(monkeypatch, environ, stream):
    monkeypatch.setitem(monkey.saved, 'socket', {})
    with pytest.raises(RequestTimeout):
        message.body({**environ, 'wsgi.input': stream}, 10, Deadline.after(0.05))


@pytest.mark.parametrize('length', ['x', '1' * 5000, '0x5'])
def test_a_content_length_that_is_no_number_is_a_bad_request(length):
    with pytest.raises(BadRequest):
        message.body({'CONTENT_LENGTH': length, 'wsgi.input': io.BytesIO()}, 10)


class RecordingBody:
    """Records the sizes that are read of it."""

    def __init__(self, content):
        self.content, self.sizes = content, []

    def read(self, size=None):
        self.sizes.append(size)
        return self.content[:size]


@pytest.mark.parametrize(('environ', 'size'), [({'CONTENT_LENGTH': '3'}, 3), ({'wsgi.input_terminated': True}, 6)])
def test_no_more_of_a_body_is_read_than_its_length_or_one_byte_above_the_limit(environ, size):
    stream = RecordingBody(b'abc')
    assert message.body({'wsgi.input': stream, **environ}, 5) == b'abc'
    assert stream.sizes == [size]


def test_the_target_of_another_server_is_script_name_and_path():
    assert message.target({'SCRIPT_NAME': '/a', 'PATH_INFO': '/b c'}) == '/a/b%20c'
    assert message.target({'PATH_INFO': '/b'}) == '/b'
    assert message.target({'SCRIPT_NAME': '/a'}) == '/a'
