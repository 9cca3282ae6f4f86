# SPDX-License-Identifier: Apache-2.0
"""Packets with descriptors, and invalid listeners."""

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


def test_listener_converts_to_json_and_back():
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
        ({'namespace': '../net'}, 'must be a name'),
        ({'namespace': 'a\0b'}, 'must be a name'),
        ({'host': 7}, 'must be a name'),
        ({'more': 1}, 'more'),
        ({'namespace': 'n' * 256}, 'more than 255 characters'),
    ],
)
def test_invalid_listener_raises_value_error_with_reason(changes, words):
    with pytest.raises(ValueError, match=words):
        Listener.from_json({**LISTENER.to_json(), **changes})
    with pytest.raises(ValueError, match='not an object'):
        Listener.from_json([])


def test_listener_of_a_later_release_is_understood_by_workers_and_clients():
    assert Listener.from_json({**LISTENER.to_json(), 'more': 1}, ignore_unknown=True) == LISTENER


def test_listener_key_differs_by_address():
    keys = {Listener('shared', 'n', 80, network_id='c', host=host).key for host in ('', '169.254.169.254', 'fe80::1%t')}
    assert keys == {'c', 'c 169.254.169.254', 'c fe80::1%t'}


def test_packet_transfers_a_descriptor(pair):
    one, other = pair
    with socket.create_server(('127.0.0.1', 0)) as listening:
        protocol.send(one, {'serve': 1}, listening.fileno())
        message, received = protocol.receive(other)
        assert message == {'serve': 1}
        with received:
            assert received.getsockname() == listening.getsockname()
    protocol.send(one, {'leave': 'x'})
    assert protocol.receive(other) == ({'leave': 'x'}, None)


@pytest.mark.parametrize('packet', [b'[]', b'{', b'\xff', b'x' * (protocol.MAX_PACKET_BYTES + 1)])
def test_invalid_packet_is_refused_and_its_descriptor_closed(pair, packet):
    one, other = pair
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    reading, writing = os.pipe()
    one.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [writing]))])
    os.close(writing)
    with pytest.raises(ValueError):
        protocol.receive(other)
    assert os.read(reading, 1) == b''
    os.close(reading)


def test_packet_with_a_descriptor_that_is_not_a_socket_is_refused_and_it_is_closed(pair):
    one, other = pair
    reading, writing = os.pipe()
    protocol.send(one, {'holds': {}}, writing)
    os.close(writing)
    with pytest.raises(ValueError, match='not a socket'):
        protocol.receive(other)
    assert os.read(reading, 1) == b''
    os.close(reading)


def test_packet_with_several_descriptors_is_refused(pair):
    one, other = pair
    one.sendmsg([b'{}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 0, 0]))])
    with pytest.raises(ValueError, match='too long'):
        protocol.receive(other)


def test_end_of_connection_raises_eof_error(pair):
    one, other = pair
    one.close()
    with pytest.raises(EOFError):
        protocol.receive(other)
