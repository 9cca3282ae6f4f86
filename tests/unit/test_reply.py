# SPDX-License-Identifier: Apache-2.0
import socket

import pytest
from gunicorn.config import Config

from metadata_wsgi.reply import Reply

V4, V6 = (socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)


class Request:
    """What an answer must know of its request."""

    method = 'PUT'
    version = (1, 1)
    headers = ()

    def should_close(self):
        return False


def pair(family):
    """(server's socket, client's socket) of one connection; ``None`` is a unix socket."""
    if family is None:
        return socket.socketpair()
    with socket.create_server(('', 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as listener:
        # IPv4 in both cases: to a socket of both families such a guest is an IPv6 one.
        client = socket.create_connection(('127.0.0.1', listener.getsockname()[1]))
        return listener.accept()[0], client


def answer(server, client, *headers):
    reply = Reply(Request(), server, Config())
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
