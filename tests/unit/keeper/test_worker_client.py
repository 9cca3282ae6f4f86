# SPDX-License-Identifier: Apache-2.0
"""A worker's subscription against a fake keeper, packet by packet."""

import os
import socket
import threading

import pytest

from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.worker_client import Subscription
from metadata_wsgi.net import listeners

A = Listener('shared', 'qrouter-a', 9697, router_id='a')
B = Listener('shared', 'qrouter-b', 9697, router_id='b')


class FakeKeeper:
    """The keeper's end. ``served`` are the worker's listeners; ``changed`` is released at each change."""

    def __init__(self, path):
        self.path = str(path)
        self.served = {}
        self.received = []
        self.changed = threading.Semaphore(0)
        self.listening = self._listen()
        self.subscription = Subscription(
            self.path, 'shared', on_add=self._on_add, on_remove=self._on_remove, sleep=lambda _: self.pause.wait(0.01)
        )
        self.pause = threading.Event()
        self.thread = threading.Thread(target=self.subscription.run, daemon=True)
        self.thread.start()

    def _listen(self):
        listening = listeners.unix_listener(self.path, mode=0o600, kind=socket.SOCK_SEQPACKET)
        listening.settimeout(10)
        return listening

    def _on_add(self, listener, sock):
        self.served[listener.key] = sock.getsockname()
        self.received.append(sock)
        self.changed.release()

    def _on_remove(self, listener):
        del self.served[listener.key]
        self.changed.release()

    def changes(self, count=1):
        for _ in range(count):
            assert self.changed.acquire(timeout=10)

    def accept(self):
        """Accept a connection; returns it, the worker's mode, and the listeners that it sends back."""
        connection, _ = self.listening.accept()
        connection.settimeout(10)
        mode, _ = protocol.receive(connection)
        sent_back = []
        while True:
            message, sock = protocol.receive(connection)
            if sock is not None:
                sock.close()
            if message == {'holds': None}:
                return connection, mode['mode'], sent_back
            sent_back.append(Listener.from_json(message['holds']))

    def restart(self):
        """Start another keeper on the same path."""
        self.listening.close()
        self.listening = self._listen()

    def close(self):
        self.subscription.stop()
        self.listening.close()
        self.thread.join(60)
        for sock in self.received:
            sock.close()


@pytest.fixture
def keeper(tmp_path):
    fake = FakeKeeper(tmp_path / 'listeners')
    yield fake
    fake.close()


@pytest.fixture
def listening():
    with socket.create_server(('127.0.0.1', 0)) as made:
        yield made


def serve(connection, listener, listening):
    protocol.send(connection, {'serve': listener.to_json()}, listening.fileno())


def serve_a_and_b_then_restart(keeper, listening):
    """The worker has the listeners A and B, and another keeper listens on the same path."""
    connection, _, _ = keeper.accept()
    serve(connection, A, listening)
    serve(connection, B, listening)
    keeper.changes(2)
    connection.close()
    keeper.restart()


def test_subscription_adds_and_removes_listeners(keeper, listening):
    connection, mode, sent_back = keeper.accept()
    assert (mode, sent_back) == ('shared', [])
    serve(connection, A, listening)
    keeper.changes()
    assert keeper.served == {'a': listening.getsockname()}
    protocol.send(connection, {'leave': 'a'})
    keeper.changes()
    assert keeper.served == {}
    connection.close()


def test_unavailable_keeper_changes_nothing_and_the_next_one_is_sent_all_listeners(keeper, listening):
    serve_a_and_b_then_restart(keeper, listening)
    connection, _, sent_back = keeper.accept()
    assert sent_back == [A, B]
    assert set(keeper.served) == {'a', 'b'}
    connection.close()


def test_listener_unknown_to_the_next_keeper_is_removed_after_sync_end(keeper, listening):
    serve_a_and_b_then_restart(keeper, listening)
    connection, _, _ = keeper.accept()
    serve(connection, B, listening)
    protocol.send(connection, {'complete': True})
    keeper.changes()
    assert set(keeper.served) == {'b'}
    connection.close()


def test_listener_with_other_fields_replaces_the_former(keeper, listening):
    connection, _, _ = keeper.accept()
    serve(connection, A, listening)
    keeper.changes()
    with socket.create_server(('127.0.0.1', 0)) as another:
        serve(connection, Listener('shared', 'qrouter-a', 9000, router_id='a'), another)
        keeper.changes(2)
        assert keeper.served == {'a': another.getsockname()}
    connection.close()


def test_malformed_packet_makes_the_worker_reconnect(keeper, listening):
    connection, _, _ = keeper.accept()
    connection.send(b'nonsense')
    again, _, _ = keeper.accept()
    serve(again, A, listening)
    keeper.changes()
    assert set(keeper.served) == {'a'}
    connection.close()
    again.close()


def test_listener_of_a_later_release_is_added_without_its_unknown_fields(keeper, listening):
    connection, _, _ = keeper.accept()
    protocol.send(connection, {'serve': {**A.to_json(), 'later': 1}}, listening.fileno())
    keeper.changes()
    assert set(keeper.served) == {'a'}
    connection.close()


def test_listener_that_is_not_understood_is_skipped_and_its_socket_closed(keeper, caplog):
    """The others stay, and the connection too."""
    connection, _, _ = keeper.accept()
    reading, writing = socket.socketpair()
    protocol.send(connection, {'serve': {**A.to_json(), 'mode': 'later'}}, writing.fileno())
    protocol.send(connection, {'later': 1}, writing.fileno())
    writing.close()
    with socket.create_server(('127.0.0.1', 0)) as listening:
        serve(connection, B, listening)
        keeper.changes()
    assert set(keeper.served) == {'b'}
    assert 'is not understood and not served: mode later' in caplog.text
    reading.settimeout(10)
    assert reading.recv(1) == b''
    reading.close()
    connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason='listens as another user: run it as root')
def test_keeper_of_another_user_is_not_trusted(tmp_path, caplog):
    """A user who may write in the directory could feed workers listeners of routers that are not theirs."""
    path = str(tmp_path / 'listeners')
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        # SO_PEERCRED has the user that called listen().
        os.seteuid(65534)
        try:
            listening.listen()
        finally:
            os.seteuid(0)

        def stop(_):
            subscription.stop()

        subscription = Subscription(path, 'shared', on_add=lambda *_: None, on_remove=lambda _: None, sleep=stop)
        subscription.run()
    assert 'the process that listens there has uid 65534' in caplog.text
