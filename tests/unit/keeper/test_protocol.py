# SPDX-License-Identifier: Apache-2.0
"""Packets with a socket beside them, and which listeners are none."""

import array
import os
import socket

import pytest

from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener

LISTENER = Listener('shared', 'qrouter-a', 9697, router_id='a')


@pytest.fixture
def pair():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def test_a_listener_survives_the_way():
    assert Listener.from_json(LISTENER.to_json()) == LISTENER


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'mode': 'process'}, 'mode process'),
        ({'network_id': 'b'}, 'exactly one'),
        ({'router_id': None}, 'exactly one'),
        ({'port': 0}, 'not a TCP port'),
        ({'port': '80'}, 'not a TCP port'),
        ({'namespace': ''}, 'a name is needed'),
        ({'namespace': '..'}, 'a name is needed'),
        ({'namespace': '../net'}, 'is a name'),
        ({'namespace': 'a\0b'}, 'is a name'),
        ({'host': 7}, 'is a name'),
        ({'more': 1}, 'more'),
    ],
)
def test_what_is_no_listener_is_refused_with_the_reason(changes, words):
    with pytest.raises(ValueError, match=words):
        Listener.from_json({**LISTENER.to_json(), **changes})
    with pytest.raises(ValueError, match='not an object'):
        Listener.from_json([])


def test_the_key_tells_the_addresses_of_one_network_apart():
    keys = {Listener('shared', 'n', 80, network_id='c', host=host).key for host in ('', '169.254.169.254', 'fe80::1%t')}
    assert keys == {'c', 'c 169.254.169.254', 'c fe80::1%t'}


def test_a_socket_beside_a_packet_is_the_same_socket(pair):
    one, other = pair
    with socket.create_server(('127.0.0.1', 0)) as listening:
        protocol.send(one, {'serve': 1}, listening.fileno())
        message, descriptor = protocol.receive(other)
        assert message == {'serve': 1}
        with socket.socket(fileno=descriptor) as handed:
            assert handed.getsockname() == listening.getsockname()
    protocol.send(one, {'leave': 'x'})
    assert protocol.receive(other) == ({'leave': 'x'}, None)


@pytest.mark.parametrize('packet', [b'[]', b'{', b'\xff', b'x' * (protocol.PACKET_BYTES + 1)])
def test_what_is_no_packet_is_refused_and_the_socket_beside_it_closed(pair, packet):
    one, other = pair
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    reading, writing = os.pipe()
    one.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [writing]))])
    os.close(writing)
    with pytest.raises(ValueError):
        protocol.receive(other)
    assert os.read(reading, 1) == b''
    os.close(reading)


def test_two_sockets_beside_one_packet_are_refused(pair):
    one, other = pair
    one.sendmsg([b'{}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 0, 0]))])
    with pytest.raises(ValueError, match='too long'):
        protocol.receive(other)


def test_the_end_is_told_from_a_packet(pair):
    one, other = pair
    one.close()
    with pytest.raises(EOFError):
        protocol.receive(other)
