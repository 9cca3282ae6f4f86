# SPDX-License-Identifier: Apache-2.0
"""A connection over a real pair of sockets; gevent's loop waits."""

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
    """A connection and the plain socket at its other end."""
    here, there = socket.socketpair()
    connection = RawSocket(_socket.socket(here.family, here.type, here.proto, here.detach()))
    with there:
        yield connection, there
    connection.close()


def test_what_is_there_is_read_without_a_wait(ends):
    connection, there = ends
    waits = []
    connection.on_block = lambda: waits.append(1)
    there.sendall(b'hello')
    assert connection.recv(3) == b'hel'
    there.close()
    assert (connection.recv(10), connection.recv(10)) == (b'lo', b'')
    assert waits == []


def test_what_is_not_there_is_waited_for_and_others_run_meanwhile(ends):
    connection, there = ends
    waits = []
    connection.on_block = lambda: waits.append(1)
    gevent.spawn(there.sendall, b'late')
    assert connection.recv(10) == b'late'
    assert waits == [1]


def test_patience_and_hurry_end_a_wait(ends):
    connection, _ = ends
    connection.settimeout(0.01)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(60)
    connection.set_deadline(0.01)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    with pytest.raises(TimeoutError):  # it is over
        connection.recv(1)
    connection.set_deadline(None)
    connection.settimeout(0)
    with pytest.raises(BlockingIOError):
        connection.recv(1)


def test_hurry_holds_for_all_pieces_together(ends):
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


def test_more_than_fits_is_sent_in_pieces_as_it_is_taken(ends):
    connection, there = ends
    data = bytes(range(256)) * 40_000
    taken = []

    def take():
        while sum(map(len, taken)) < len(data):
            taken.append(there.recv(1 << 16))

    taking = threading.Thread(target=take)
    taking.start()
    connection.sendall(data)
    taking.join()
    assert b''.join(taken) == data


def test_who_takes_nothing_is_given_up(ends):
    connection, _ = ends
    connection.settimeout(0.01)
    with pytest.raises(TimeoutError):
        connection.sendall(bytes(1 << 24))


def test_a_shutdown_by_another_ends_the_wait(ends):
    connection, _ = ends
    gevent.spawn(connection.shutdown, 2)
    assert connection.recv(1) == b''


def test_options_are_the_sockets(ends):
    connection, _ = ends
    assert connection.family == socket.AF_UNIX
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert len(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)) == 12
    assert connection.getsockname() == ''


def test_one_of_gevents_is_made_light():
    here, there = gevent_socket.socketpair()
    with there:
        connection = from_gevent_socket(here)
        assert (type(connection), here.fileno()) == (RawSocket, -1)
        gevent.spawn(there.sendall, b'late')
        assert connection.recv(10) == b'late'
        connection.close()


@pytest.mark.parametrize('module', [ssl, gevent.ssl], ids=['threads', 'gevent'])
def test_it_is_not_made_light_where_threads_wait_or_tls_is_spoken(module, monkeypatch):
    """Whichever ssl module made the context, and whether or not gevent has changed it since: bytes sent beside TLS
    would be plain."""
    here, there = socket.socketpair()
    with here, there:
        assert from_gevent_socket(here) is here
    spoken = module.create_default_context().wrap_socket(module.socket(), server_hostname='x')
    monkeypatch.setitem(monkey.saved, 'socket', {})
    with spoken:
        assert from_gevent_socket(spoken) is spoken
