# SPDX-License-Identifier: Apache-2.0
"""A worker follows a keeper that the test plays, packet by packet."""

import socket
import threading

import pytest

from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.worker_client import Following
from metadata_wsgi.net import listeners

A = Listener('shared', 'qrouter-a', 9697, router_id='a')
B = Listener('shared', 'qrouter-b', 9697, router_id='b')


class Played:
    """The keeper's end. ``served`` is what the worker serves now; ``changed`` is set at each change."""

    def __init__(self, path):
        self.path = str(path)
        self.served = {}
        self.handed = []
        self.changed = threading.Semaphore(0)
        self.listening = self._listen()
        self.following = Following(
            self.path, 'shared', serve=self._serve, leave=self._leave, sleep=lambda _: self.pause.wait(0.01)
        )
        self.pause = threading.Event()
        self.thread = threading.Thread(target=self.following.run, daemon=True)
        self.thread.start()

    def _listen(self):
        listening = listeners.unix_listener(self.path, mode=0o600, kind=socket.SOCK_SEQPACKET)
        listening.settimeout(10)
        return listening

    def _serve(self, listener, handed):
        self.served[listener.key] = handed.getsockname()
        self.handed.append(handed)
        self.changed.release()

    def _leave(self, listener):
        del self.served[listener.key]
        self.changed.release()

    def changes(self, count=1):
        for _ in range(count):
            assert self.changed.acquire(timeout=10)

    def accept(self):
        """A connection, and what the worker said in greeting: its mode, and what it holds."""
        connection, _ = self.listening.accept()
        connection.settimeout(10)
        mode, _ = protocol.receive(connection)
        held = []
        while True:
            message, descriptor = protocol.receive(connection)
            if descriptor is not None:
                socket.socket(fileno=descriptor).close()
            if message == {'holds': None}:
                return connection, mode['mode'], held
            held.append(Listener.from_json(message['holds']))

    def restart(self):
        """Another keeper at the same place."""
        self.listening.close()
        self.listening = self._listen()

    def close(self):
        self.following.stop()
        self.listening.close()
        self.thread.join(10)
        for handed in self.handed:
            handed.close()


@pytest.fixture
def keeper(tmp_path):
    played = Played(tmp_path / 'listeners')
    yield played
    played.close()


@pytest.fixture
def listening():
    with socket.create_server(('127.0.0.1', 0)) as made:
        yield made


def serve(connection, listener, listening):
    protocol.send(connection, {'serve': listener.to_json()}, listening.fileno())


def test_what_comes_is_served_and_what_goes_is_left(keeper, listening):
    connection, mode, held = keeper.accept()
    assert (mode, held) == ('shared', [])
    serve(connection, A, listening)
    keeper.changes()
    assert keeper.served == {'a': listening.getsockname()}
    protocol.send(connection, {'leave': 'a'})
    keeper.changes()
    assert keeper.served == {}
    connection.close()


def test_a_keeper_that_is_away_changes_nothing_and_the_next_one_is_handed_everything(keeper, listening):
    connection, _, _ = keeper.accept()
    serve(connection, A, listening)
    serve(connection, B, listening)
    keeper.changes(2)
    connection.close()
    keeper.restart()
    connection, _, held = keeper.accept()
    assert held == [A, B]
    assert set(keeper.served) == {'a', 'b'}
    connection.close()


def test_what_the_next_keeper_does_not_know_is_left_when_it_has_said_all(keeper, listening):
    connection, _, _ = keeper.accept()
    serve(connection, A, listening)
    serve(connection, B, listening)
    keeper.changes(2)
    connection.close()
    keeper.restart()
    connection, _, _ = keeper.accept()
    serve(connection, B, listening)
    protocol.send(connection, {'complete': True})
    keeper.changes()
    assert set(keeper.served) == {'b'}
    connection.close()


def test_a_listener_that_differs_replaces_the_former(keeper, listening):
    connection, _, _ = keeper.accept()
    serve(connection, A, listening)
    keeper.changes()
    with socket.create_server(('127.0.0.1', 0)) as another:
        serve(connection, Listener('shared', 'qrouter-a', 9000, router_id='a'), another)
        keeper.changes(2)
        assert keeper.served == {'a': another.getsockname()}
    connection.close()


def test_nonsense_ends_the_connection_and_not_the_following(keeper, listening):
    connection, _, _ = keeper.accept()
    connection.send(b'nonsense')
    again, _, _ = keeper.accept()
    serve(again, A, listening)
    keeper.changes()
    assert set(keeper.served) == {'a'}
    connection.close()
    again.close()
