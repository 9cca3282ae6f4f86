# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from metadata_wsgi.server.request_parser import ParsedRequest
from metadata_wsgi.server.response_writer import ResponseWriter

V4, V6 = (socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)


def make_request(method='PUT', version='HTTP/1.1', **kwargs):
    return ParsedRequest({'REQUEST_METHOD': method, 'SERVER_PROTOCOL': version}, **{'must_close': False, **kwargs})


def pair(family):
    """(server's socket, client's socket) of one connection; family None is a unix socket."""
    if family is None:
        return socket.socketpair()
    with socket.create_server(('', 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as listener:
        # IPv4 in both cases: on a dual-stack socket such a connection has the family AF_INET6.
        client = socket.create_connection(('127.0.0.1', listener.getsockname()[1]))
        return listener.accept()[0], client


def respond(server, client, *headers):
    response = ResponseWriter(make_request(), server)
    response.start_response('200 OK', [('Content-Length', '0'), *headers])
    response.close()
    return client.recv(4096).decode().lower()


@pytest.mark.parametrize(('family', 'option'), [(socket.AF_INET, V4), (socket.AF_INET6, V4), (socket.AF_INET6, V6)])
def test_a_hop_limit_sets_the_ttl_of_the_clients_socket_and_is_not_sent(family, option):
    server, client = pair(family)
    with server, client:
        received = respond(server, client, ('X-Metadata-Hop-Limit', '1'))
        assert received.startswith('http/1.1 200 ok')
        assert 'hop-limit' not in received
        assert server.getsockopt(*option) == 1


@pytest.mark.parametrize('value', ['0', '256', '-1', 'x', ''])
def test_an_invalid_hop_limit_is_not_sent_and_changes_no_ttl(value):
    server, client = pair(socket.AF_INET)
    with server, client:
        before = server.getsockopt(*V4)
        assert 'hop-limit' not in respond(server, client, ('X-Metadata-Hop-Limit', value))
        assert server.getsockopt(*V4) == before


def test_without_a_hop_limit_the_ttl_is_unchanged():
    server, client = pair(socket.AF_INET)
    with server, client:
        before = server.getsockopt(*V4)
        respond(server, client)
        assert server.getsockopt(*V4) == before


def test_a_hop_limit_is_sent_to_a_namespace_proxy():
    server, client = pair(None)
    with server, client:
        assert 'x-metadata-hop-limit: 1\r\n' in respond(server, client, ('X-Metadata-Hop-Limit', '1'))


class RecordingConnection:
    """A connection that records each call of sendall."""

    family = socket.AF_UNIX

    def __init__(self):
        self.segments = []

    def sendall(self, data):
        self.segments.append(data)

    @property
    def response(self):
        """(lines of the header without Date, body)."""
        header, _, body = b''.join(self.segments).decode('latin-1').partition('\r\n\r\n')
        return [line for line in header.split('\r\n') if not line.startswith('Date: ')], body


def write(status, headers, *pieces, **request):
    connection = RecordingConnection()
    writer = ResponseWriter(make_request(**request), connection)
    writer.start_response(status, headers)
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return connection, writer


KEEP_ALIVE, CLOSE, CHUNKED = 'Connection: keep-alive', 'Connection: close', 'Transfer-Encoding: chunked'


@pytest.mark.parametrize(
    ('status', 'headers', 'pieces', 'request_', 'lines', 'body'),
    [
        ('200 OK', [('Content-Length', '2')], [b'ok'], {}, ['Content-Length: 2', KEEP_ALIVE], 'ok'),
        ('200 OK', [('Content-Length', '2')], [b'o', b'k', b'!'], {}, ['Content-Length: 2', KEEP_ALIVE], 'ok'),
        ('200 OK', [], [b'o', b'', b'k'], {}, [KEEP_ALIVE, CHUNKED], '1\r\no\r\n1\r\nk\r\n0\r\n\r\n'),
        ('200 OK', [], [b'ok'], {'version': 'HTTP/1.0'}, [CLOSE], 'ok'),
        ('200 OK', [('Content-Length', '9')], [b'ok'], {'method': 'HEAD'}, ['Content-Length: 9', KEEP_ALIVE], ''),
        ('200 OK', [], [], {'method': 'HEAD'}, [KEEP_ALIVE], ''),
        ('204 No Content', [('Content-Length', '0')], [], {}, [KEEP_ALIVE], ''),
        ('304 Not Modified', [('Content-Length', '9')], [b'x'], {}, ['Content-Length: 9', KEEP_ALIVE], ''),
        ('400 Bad Request', [('Content-Length', '0')], [], {}, ['Content-Length: 0', CLOSE], ''),
        ('413 Too Large', [('Content-Length', '0')], [], {}, ['Content-Length: 0', CLOSE], ''),
        ('200 OK', [('Content-Length', '0')], [], {'must_close': True}, ['Content-Length: 0', CLOSE], ''),
        ('200 OK', [('X-Name', 'caf\xe9 \t'), ('Content-Length', '0')], [], {},
         ['X-Name: caf\xe9 \t', 'Content-Length: 0', KEEP_ALIVE], ''),
        ('200 OK', [('Connection', 'x'), ('TE', 'y'), ('Keep-Alive', 'z'), ('Transfer-Encoding', 'chunked'),
                    ('Server', 'nova'), ('Content-Length', '0')], [], {},
         ['Server: nova', 'Content-Length: 0', KEEP_ALIVE], ''),
        ('418 ', [('Content-Length', '0')], [], {}, ['Content-Length: 0', KEEP_ALIVE], ''),
    ],
)  # fmt: skip
def test_the_framing_of_a_response(status, headers, pieces, request_, lines, body):
    connection, writer = write(status, headers, *pieces, **request_)
    version = request_.get('version', 'HTTP/1.1')
    assert connection.response == ([f'{version} {status}', *lines], body)
    assert writer.should_close() is (CLOSE in lines)


def test_header_and_first_piece_are_one_segment_and_a_date_of_the_application_is_kept():
    connection, _ = write('200 OK', [('Content-Length', '4'), ('Date', 'then')], b'all', b'.')
    assert connection.segments == [
        b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\nDate: then\r\nConnection: keep-alive\r\n\r\nall', b'.'
    ]  # fmt: skip


def test_a_body_shorter_than_its_content_length_ends_the_connection():
    _, writer = write('200 OK', [('Content-Length', '4')], b'all')
    assert writer.should_close()


@pytest.mark.parametrize('status', ['200\r\nX: y', '20', '2000', 'OK', '200 caf\u0161', '000 Zero'])
def test_a_malformed_status_is_not_sent(status):
    with pytest.raises(ValueError, match='malformed status'):
        write(status, [])


@pytest.mark.parametrize(
    'header', [('X', 'a\r\nY: b'), ('X', '\0'), ('X: y', 'z'), ('', 'z'), ('X ', 'z'), ('X', '\u0161')]
)
def test_a_malformed_header_is_not_sent_and_the_error_does_not_contain_its_value(header):
    with pytest.raises(ValueError, match='malformed header') as raised:
        write('200 OK', [header])
    assert header[1] == 'z' or header[1] not in str(raised.value)


@pytest.mark.parametrize('header', [('X', 1), (b'X', 'y'), ('X', b'y')])
def test_a_header_that_is_not_str_and_a_body_that_is_not_bytes_are_type_errors(header):
    with pytest.raises(TypeError):
        write('200 OK', [header])
    with pytest.raises(TypeError):
        write('200 OK', [], 'text')


def test_a_second_status_replaces_the_first_only_with_exc_info_and_before_it_is_sent():
    connection = RecordingConnection()
    writer = ResponseWriter(make_request(), connection)
    writer.start_response('200 OK', [('Content-Length', '9')])
    with pytest.raises(AssertionError):
        writer.start_response('503 Away', [])
    writer.write(b'')
    fault = RuntimeError('x')
    writer.start_response('503 Away', [('Content-Length', '1')], (RuntimeError, fault, None))
    writer.write(b'!')
    assert connection.response == (['HTTP/1.1 503 Away', 'Content-Length: 1', KEEP_ALIVE], '!')
    with pytest.raises(RuntimeError):
        writer.start_response('500 Late', [], (RuntimeError, fault, None))
