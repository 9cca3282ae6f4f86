# SPDX-License-Identifier: Apache-2.0
import socket

import pytest
from gunicorn.config import Config

from metadata_wsgi.server.request_parser import ParsedRequest
from metadata_wsgi.server.response_writer import ResponseWriter

V4, V6 = (socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)


def head(method='PUT', version='HTTP/1.1', **kwargs):
    return ParsedRequest({'REQUEST_METHOD': method, 'SERVER_PROTOCOL': version}, **{'must_close': False, **kwargs})


def pair(family):
    """(server's socket, client's socket) of one connection; ``None`` is a unix socket."""
    if family is None:
        return socket.socketpair()
    with socket.create_server(('', 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as listener:
        # IPv4 in both cases: to a socket of both families such a guest is an IPv6 one.
        client = socket.create_connection(('127.0.0.1', listener.getsockname()[1]))
        return listener.accept()[0], client


def answer(server, client, *headers):
    reply = ResponseWriter(head(), server, Config())
    reply.start_response('200 OK', [('Content-Length', '0'), *headers])
    reply.close()
    return client.recv(4096).decode().lower()


@pytest.mark.parametrize(('family', 'option'), [(socket.AF_INET, V4), (socket.AF_INET6, V4), (socket.AF_INET6, V6)])
def test_a_hop_limit_is_acted_on_at_the_guests_socket_and_not_told_the_guest(family, option):
    server, client = pair(family)
    with server, client:
        said = answer(server, client, ('X-Metadata-Hop-Limit', '1'))
        assert said.startswith('http/1.1 200 ok')
        assert 'hop-limit' not in said
        assert server.getsockopt(*option) == 1


@pytest.mark.parametrize('value', ['0', '256', '-1', 'x', ''])
def test_a_hop_limit_that_is_none_is_not_told_either_and_changes_nothing(value):
    server, client = pair(socket.AF_INET)
    with server, client:
        before = server.getsockopt(*V4)
        assert 'hop-limit' not in answer(server, client, ('X-Metadata-Hop-Limit', value))
        assert server.getsockopt(*V4) == before


def test_without_one_packets_go_as_far_as_they_do():
    server, client = pair(socket.AF_INET)
    with server, client:
        before = server.getsockopt(*V4)
        answer(server, client)
        assert server.getsockopt(*V4) == before


def test_towards_a_namespace_proxy_it_is_passed_on():
    server, client = pair(None)
    with server, client:
        assert 'x-metadata-hop-limit: 1\r\n' in answer(server, client, ('X-Metadata-Hop-Limit', '1'))


class Wire:
    """A connection that keeps what is sent, segment by segment."""

    family = socket.AF_UNIX

    def __init__(self):
        self.segments = []

    def sendall(self, data):
        self.segments.append(data)

    @property
    def said(self):
        """Head without its date, and body."""
        start, _, body = b''.join(self.segments).decode('latin-1').partition('\r\n\r\n')
        return [line for line in start.split('\r\n') if not line.startswith('Date: ')], body


def say(status, headers, *pieces, **request):
    wire = Wire()
    reply = ResponseWriter(head(**request), wire, Config())
    reply.start_response(status, headers)
    for piece in pieces:
        reply.write(piece)
    reply.close()
    return wire, reply


KEPT, CLOSED, CHUNKED = 'Connection: keep-alive', 'Connection: close', 'Transfer-Encoding: chunked'


@pytest.mark.parametrize(
    ('status', 'headers', 'pieces', 'request_', 'lines', 'body'),
    [
        ('200 OK', [('Content-Length', '2')], [b'ok'], {}, ['Content-Length: 2', KEPT], 'ok'),
        ('200 OK', [('Content-Length', '2')], [b'o', b'k', b'!'], {}, ['Content-Length: 2', KEPT], 'ok'),
        ('200 OK', [], [b'o', b'', b'k'], {}, [KEPT, CHUNKED], '1\r\no\r\n1\r\nk\r\n0\r\n\r\n'),
        ('200 OK', [], [b'ok'], {'version': 'HTTP/1.0'}, [CLOSED], 'ok'),
        ('200 OK', [('Content-Length', '9')], [b'ok'], {'method': 'HEAD'}, ['Content-Length: 9', KEPT], ''),
        ('200 OK', [], [], {'method': 'HEAD'}, [KEPT], ''),
        ('204 No Content', [('Content-Length', '0')], [], {}, [KEPT], ''),
        ('304 Not Modified', [('Content-Length', '9')], [b'x'], {}, ['Content-Length: 9', KEPT], ''),
        ('400 Bad Request', [('Content-Length', '0')], [], {}, ['Content-Length: 0', CLOSED], ''),
        ('413 Too Large', [('Content-Length', '0')], [], {}, ['Content-Length: 0', CLOSED], ''),
        ('200 OK', [('Content-Length', '0')], [], {'must_close': True}, ['Content-Length: 0', CLOSED], ''),
        ('200 OK', [('X-Name', 'caf\xe9 \t'), ('Content-Length', '0')], [], {},
         ['X-Name: caf\xe9 \t', 'Content-Length: 0', KEPT], ''),
        ('200 OK', [('Connection', 'x'), ('TE', 'y'), ('Keep-Alive', 'z'), ('Transfer-Encoding', 'chunked'),
                    ('Server', 'nova'), ('Content-Length', '0')], [], {},
         ['Server: nova', 'Content-Length: 0', KEPT], ''),
        ('418 ', [('Content-Length', '0')], [], {}, ['Content-Length: 0', KEPT], ''),
    ],
)  # fmt: skip
def test_an_answer_is_framed_as_http_wants_it(status, headers, pieces, request_, lines, body):
    wire, reply = say(status, headers, *pieces, **request_)
    version = request_.get('version', 'HTTP/1.1')
    assert wire.said == ([f'{version} {status}', *lines], body)
    assert reply.should_close() is (CLOSED in lines)


def test_head_and_first_piece_leave_together_and_the_answers_own_date_is_kept():
    wire, _ = say('200 OK', [('Content-Length', '4'), ('Date', 'then')], b'all', b'.')
    assert wire.segments == [
        b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\nDate: then\r\nConnection: keep-alive\r\n\r\nall', b'.'
    ]  # fmt: skip


def test_an_answer_shorter_than_promised_ends_the_connection():
    _, reply = say('200 OK', [('Content-Length', '4')], b'all')
    assert reply.should_close()


@pytest.mark.parametrize('status', ['200\r\nX: y', '20', '2000', 'OK', '200 caf\u0161', '000 Zero'])
def test_a_status_that_is_none_is_never_sent(status):
    with pytest.raises(ValueError, match='no status'):
        say(status, [])


@pytest.mark.parametrize(
    'header', [('X', 'a\r\nY: b'), ('X', '\0'), ('X: y', 'z'), ('', 'z'), ('X ', 'z'), ('X', '\u0161')]
)
def test_a_header_that_is_none_is_never_sent_nor_its_value_told(header):
    with pytest.raises(ValueError, match='no header') as told:
        say('200 OK', [header])
    assert header[1] == 'z' or header[1] not in str(told.value)


@pytest.mark.parametrize('header', [('X', 1), (b'X', 'y'), ('X', b'y')])
def test_what_is_no_text_or_no_bytes_is_told_the_filter_that_says_it(header):
    with pytest.raises(TypeError):
        say('200 OK', [header])
    with pytest.raises(TypeError):
        say('200 OK', [], 'text')


def test_a_second_status_replaces_the_first_only_with_exc_info_and_before_it_is_sent():
    wire = Wire()
    reply = ResponseWriter(head(), wire, Config())
    reply.start_response('200 OK', [('Content-Length', '9')])
    with pytest.raises(AssertionError):
        reply.start_response('503 Away', [])
    reply.write(b'')
    fault = RuntimeError('x')
    reply.start_response('503 Away', [('Content-Length', '1')], (RuntimeError, fault, None))
    reply.write(b'!')
    assert wire.said == (['HTTP/1.1 503 Away', 'Content-Length: 1', KEPT], '!')
    with pytest.raises(RuntimeError):
        reply.start_response('500 Late', [], (RuntimeError, fault, None))
