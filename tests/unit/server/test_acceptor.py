# SPDX-License-Identifier: Apache-2.0
"""Real listeners on loopback, and the greenlet pool that handles their connections."""

import errno
import logging
import socket
from typing import ClassVar

import gevent
import gevent.event
import pytest
from gevent import socket as gevent_socket

from metadata_wsgi import limits
from metadata_wsgi.server import acceptor
from metadata_wsgi.server.acceptor import Acceptor, GreenletPool


class RecordingServer:
    """A listener whose handler records when it starts and ends, and in between waits for ``may_end``."""

    def __init__(self, limit=100, pool=None):
        self.pool = GreenletPool(limit) if pool is None else pool
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.address = self.listener.getsockname()
        self.events = []
        self.may_end = gevent.event.Event()
        self.acceptor = Acceptor(self.listener, self.pool, self.handle)
        self.acceptor.start()

    def handle(self, sock, address):
        self.events.append('started')
        self.last_greenlet = gevent.getcurrent()
        self.may_end.wait()
        sock.send(b'!')
        sock.close()
        self.events.append('ended')

    def connect(self):
        # The kernel connects at once. gevent's own way would start a thread for the address, with a loop of its own.
        connected = socket.create_connection(self.address)
        return gevent_socket.socket(connected.family, connected.type, 0, connected.detach())


@pytest.fixture
def server():
    made = RecordingServer()
    yield made
    made.acceptor.close()


def wait_until(condition):
    with gevent.Timeout(60):
        while not condition():
            gevent.sleep(0)


def receive(connection):
    with connection:
        return connection.recv(10)


def test_connections_are_handled_concurrently_and_counted(server):
    clients = [server.connect() for _ in range(40)]
    wait_until(lambda: len(server.pool) == 40)
    assert server.events == ['started'] * 40
    server.may_end.set()
    assert [receive(client) for client in clients] == [b'!'] * 40
    wait_until(lambda: len(server.pool) == 0)


def test_an_idle_greenlet_is_reused(server):
    server.may_end.set()
    assert receive(server.connect()) == b'!'
    first = server.last_greenlet
    assert receive(server.connect()) == b'!'
    assert server.last_greenlet is first


def test_the_number_of_idle_greenlets_is_limited(server, monkeypatch):
    monkeypatch.setattr(limits, 'MAX_IDLE_GREENLETS', 2)
    clients = [server.connect() for _ in range(5)]
    wait_until(lambda: len(server.pool) == 5)
    server.may_end.set()
    assert [receive(client) for client in clients] == [b'!'] * 5
    wait_until(lambda: len(server.pool) == 0)
    assert len(server.pool._idle) == 2


def test_a_full_pool_pauses_the_listener_until_a_greenlet_is_free():
    server = RecordingServer(limit=2)
    clients = [server.connect() for _ in range(5)]
    wait_until(lambda: server.pool._paused_acceptors)
    assert server.events == ['started'] * 2
    server.may_end.set()
    assert [receive(client) for client in clients] == [b'!'] * 5
    server.acceptor.close()


def test_on_full_is_called_only_if_a_new_connection_waits():
    calls = []
    pool = GreenletPool(2, on_full=lambda: calls.append(len(pool)))
    server = RecordingServer(pool=pool)
    clients = [server.connect() for _ in range(2)]
    wait_until(lambda: len(pool) == 2)
    for _ in range(5):
        gevent.sleep(0)
    assert calls == []
    clients.append(server.connect())
    wait_until(lambda: calls)
    assert calls == [2]
    server.may_end.set()
    assert [receive(client) for client in clients] == [b'!'] * 3
    server.acceptor.close()


@pytest.mark.parametrize('first', [0, 1])
def test_paused_listeners_resume_in_turn(first):
    """Connections of one router do not wait until all of another router's are handled."""
    pool, handled = GreenletPool(2), []
    busy, quiet = servers = [RecordingServer(pool=pool), RecordingServer(pool=pool)][:: 1 - 2 * first]

    def handle(sock, address):
        handled.append(sock.getsockname()[1])
        gevent.sleep(0.001)
        sock.close()

    for server in servers:
        server.acceptor._handler = handle
    clients = [busy.connect() for _ in range(40)]
    gevent.sleep(0)
    clients.append(quiet.connect())
    assert [receive(client) for client in clients] == [b''] * 41
    assert handled.index(quiet.address[1]) < 20
    for server in servers:
        server.acceptor.close()


def test_an_exception_of_a_handler_is_logged_and_frees_its_greenlet(caplog):
    server = RecordingServer()

    def fail(sock, address):
        sock.close()
        raise RuntimeError('unforeseen')

    server.acceptor._handler = fail
    for _ in range(3):
        assert receive(server.connect()) == b''
    assert (len(server.pool), len(server.pool._idle)) == (0, 1)
    assert caplog.text.count('RuntimeError: unforeseen') == 1  # the log is throttled
    server.acceptor.close()


def test_a_killed_handler_frees_its_slot():
    server = RecordingServer(limit=1)

    def end(sock, address):
        gevent.sleep(0)
        sock.close()
        raise gevent.GreenletExit

    server.acceptor._handler = end
    clients = [server.connect() for _ in range(3)]
    assert [receive(client) for client in clients] == [b''] * 3
    assert len(server.pool) == 0
    server.acceptor.close()


def test_a_timeout_that_a_handler_did_not_cancel_ends_only_its_idle_greenlet(server):
    timeout = gevent.Timeout(0.001)
    handle = server.acceptor._handler
    server.may_end.set()
    server.acceptor._handler = lambda sock, address: (timeout.start(), handle(sock, address))
    assert receive(server.connect()) == b'!'
    wait_until(lambda: not timeout.pending and len(server.pool._idle) == 0)
    server.acceptor._handler = handle
    assert receive(server.connect()) == b'!'


def test_a_closed_acceptor_refuses_new_connections_and_finishes_those_in_progress(server):
    client = server.connect()
    wait_until(lambda: len(server.pool) == 1)
    server.acceptor.close()
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    server.may_end.set()
    assert receive(client) == b'!'


class FailingListener:
    """A listener whose accept fails with these errors first."""

    def __init__(self, listener, *errors):
        self._listener = listener
        self._errors = [OSError(number, '') for number in errors]
        self.family, self.type, self.proto = listener.family, listener.type, listener.proto

    def _accept(self):
        if self._errors:
            raise self._errors.pop(0)
        return self._listener._accept()


@pytest.mark.parametrize(('number', 'logged'), [(errno.EMFILE, 1), (errno.ENOMEM, 1), (errno.ECONNABORTED, 0)])
def test_an_accept_error_is_retried_after_a_backoff(server, number, logged, caplog, monkeypatch):
    monkeypatch.setattr(limits, 'ACCEPT_ERROR_BACKOFF_S', 0.01)
    server.acceptor._listener = FailingListener(server.listener, number, number)
    server.may_end.set()
    assert receive(server.connect()) == b'!'
    assert len(caplog.records) == logged


def test_an_accept_error_is_logged_outside_the_event_loop(server, monkeypatch):
    """A log handler may wait for a lock or for syslog's socket; the event loop must not."""

    class WaitingHandler(logging.Handler):
        messages: ClassVar[list[str]] = []

        def emit(self, record):
            gevent.sleep(0)
            self.messages.append(record.getMessage())

    waiting = WaitingHandler()
    acceptor.LOG.addHandler(waiting)
    monkeypatch.setattr(limits, 'ACCEPT_ERROR_BACKOFF_S', 0.01)
    server.acceptor._listener = FailingListener(server.listener, errno.EMFILE)
    server.may_end.set()
    assert receive(server.connect()) == b'!'
    acceptor.LOG.removeHandler(waiting)
    assert len(waiting.messages) == 1
