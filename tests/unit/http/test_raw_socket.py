# SPDX-License-Identifier: Apache-2.0
"""RawSocket over a real socket pair."""

import _socket
import socket
import ssl
import threading

import gevent.ssl
import pytest
from gevent import monkey
from gevent import socket as gevent_socket

from metadata_wsgi.http.raw_socket import RawSocket, from_gevent_socket


@pytest.fixture
def ends():
    """A RawSocket and the plain socket at its other end."""
    here, there = socket.socketpair()
    connection = RawSocket(_socket.socket(here.family, here.type, here.proto, here.detach()))
    with there:
        yield connection, there
    connection.close()


def test_recv_of_data_that_has_arrived_does_not_wait(ends):
    connection, there = ends
    waits = []
    connection.on_block = lambda: waits.append(1)
    there.sendall(b'hello')
    assert connection.recv(3) == b'hel'
    there.close()
    assert (connection.recv(10), connection.recv(10)) == (b'lo', b'')
    assert waits == []


def test_recv_waits_for_data_while_other_greenlets_run(ends):
    connection, there = ends
    waits = []
    connection.on_block = lambda: waits.append(1)
    gevent.spawn(there.sendall, b'late')
    assert connection.recv(10) == b'late'
    assert waits == [1]


def test_each_wait_of_a_connection_ends_with_its_data(ends):
    """Also after a wait that ended with a timeout: the watcher is the same one."""
    connection, there = ends
    for data in (b'first', b'second'):
        connection.settimeout(0.01)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        connection.settimeout(60)
        gevent.spawn(there.sendall, data)
        assert connection.recv(10) == data


def test_a_wait_ends_with_its_data_if_a_closed_connection_had_the_same_descriptor():
    def pair():
        here, there = socket.socketpair()
        connection = RawSocket(_socket.socket(here.family, here.type, here.proto, here.detach()))
        connection.settimeout(0.01)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        return connection, there

    closed, other_end = pair()
    descriptor = closed._sock.fileno()
    closed.close()
    connection, there = pair()
    assert connection._sock.fileno() == descriptor
    with other_end, there:
        connection.settimeout(60)
        gevent.spawn(there.sendall, b'x')
        assert connection.recv(10) == b'x'
        connection.close()


def test_closed_peer_is_detected_even_if_data_is_unread(ends):
    connection, there = ends
    assert not connection.peer_has_closed()
    there.sendall(b'unread')
    there.shutdown(socket.SHUT_WR)
    assert not connection.peer_has_closed()
    there.close()
    assert connection.peer_has_closed()


def test_open_peer_is_detected_while_the_send_buffer_is_full(ends):
    connection, _ = ends
    connection.settimeout(0.01)
    with pytest.raises(TimeoutError):
        connection.sendall(bytes(10_000_000))
    assert not connection.peer_has_closed()


def test_timeout_and_deadline_end_a_wait(ends):
    connection, _ = ends
    connection.settimeout(0.01)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(60)
    connection.set_deadline(0.01)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    with pytest.raises(TimeoutError):  # after the deadline
        connection.recv(1)
    connection.set_deadline(None)
    connection.settimeout(0)
    with pytest.raises(BlockingIOError):
        connection.recv(1)


def test_a_deadline_holds_for_several_calls_together(ends):
    connection, there = ends
    connection.set_deadline(0.05)

    def drip():
        while True:
            there.sendall(b'x')
            gevent.sleep(0.005)

    dripping = gevent.spawn(drip)
    with pytest.raises(TimeoutError):
        for _ in iter(lambda: connection.recv(1), b''):
            pass
    dripping.kill()


def test_sendall_of_more_than_the_kernels_buffer(ends):
    connection, there = ends
    data = bytes(range(256)) * 40_000
    received = []

    def receive():
        while sum(map(len, received)) < len(data):
            received.append(there.recv(1 << 16))

    receiving = threading.Thread(target=receive)
    receiving.start()
    connection.sendall(data)
    receiving.join()
    assert b''.join(received) == data


def test_sendall_has_a_timeout(ends):
    connection, _ = ends
    connection.settimeout(0.01)
    with pytest.raises(TimeoutError):
        connection.sendall(bytes(1 << 24))


def test_a_shutdown_by_another_greenlet_ends_a_wait(ends):
    connection, _ = ends
    gevent.spawn(connection.shutdown, 2)
    assert connection.recv(1) == b''


def test_socket_options(ends):
    connection, _ = ends
    assert connection.family == socket.AF_UNIX
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert len(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)) == 12
    assert connection.getsockname() == ''


def test_a_gevent_socket_is_converted():
    here, there = gevent_socket.socketpair()
    with there:
        connection = from_gevent_socket(here)
        assert (type(connection), here.fileno()) == (RawSocket, -1)
        gevent.spawn(there.sendall, b'late')
        assert connection.recv(10) == b'late'
        connection.close()


@pytest.mark.parametrize('module', [ssl, gevent.ssl], ids=['threads', 'gevent'])
def test_a_blocking_or_tls_socket_is_not_converted(module, monkeypatch):
    """With either ssl module, patched by gevent or not: RawSocket would bypass TLS and send plain text."""
    here, there = socket.socketpair()
    with here, there:
        assert from_gevent_socket(here) is here
    tls_socket = module.create_default_context().wrap_socket(module.socket(), server_hostname='x')
    monkeypatch.setitem(monkey.saved, 'socket', {})
    with tls_socket:
        assert from_gevent_socket(tls_socket) is tls_socket
