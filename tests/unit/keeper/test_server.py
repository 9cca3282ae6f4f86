# SPDX-License-Identifier: Apache-2.0
"""The keeper's loop with real unix sockets, and sockets of this very namespace; nothing here needs root."""

import os
import socket
import stat
import threading

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client, protocol
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.server import Keeper, may_follow


class FakeOpener:
    """Every namespace is this one, and every port one that is free."""

    def open(self, listener):
        return socket.create_server((listener.host, 0))

    def fits(self, listener, kept):
        return kept.getsockname()[0] == listener.host

    def are_one(self, kept, other):
        return kept.getsockname() == other.getsockname()

    def is_gone(self, listener):
        return False


class Running:
    """A keeper that breathes in a thread."""

    def __init__(self, state_path, **options):
        self.state_path = str(state_path)
        self.keeper = Keeper(self.state_path, **options)
        self.running = True
        self.thread = threading.Thread(target=self._breathe)
        self.thread.start()

    def _breathe(self):
        while self.running:
            self.keeper.breathe()

    def follow(self, mode='shared'):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(10)
        connection.connect(os.path.join(self.state_path, 'listeners'))
        protocol.send(connection, {'mode': mode})
        protocol.send(connection, {'holds': None})
        assert protocol.receive(connection) == ({'complete': True}, None)
        return connection

    def close(self):
        self.running = False
        self.thread.join(10)
        self.keeper.close()


@pytest.fixture
def running(tmp_path):
    started = Running(tmp_path)
    yield started
    started.close()


def test_only_root_and_its_group_reach_the_sockets(running):
    modes = [stat.S_IMODE(os.stat(os.path.join(running.state_path, name)).st_mode) for name in ('keeper', 'listeners')]
    assert modes == [0o600, 0o660]


def test_what_cannot_be_is_refused_in_words(running):
    with admin_client.connected(running.state_path) as keeper:
        with pytest.raises(NetnsError, match='there is no namespace no-such-one'):
            keeper.attach(Listener('shared', 'no-such-one', 9697, router_id='a'))
        with pytest.raises(NetnsError, match='mode process'):
            keeper.attach(Listener('process', 'no-such-one', 9697, router_id='a'))
        assert keeper.detach('a') is False
        assert keeper.list() == ([], {})


def test_a_verb_of_nobody_and_nonsense_leave_the_others_served(running):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(admin_client.path(running.state_path))
        protocol.send(connection, {'verb': 'sing'})
        assert 'one of the verbs' in protocol.receive(connection)[0]['error']
        connection.send(b'nonsense')
        assert connection.recv(1) == b''
    with admin_client.connected(running.state_path) as keeper:
        assert keeper.list() == ([], {})


def test_who_follows_is_counted_until_it_goes(running):
    with running.follow(), running.follow('one_hop'), admin_client.connected(running.state_path) as keeper:
        assert keeper.list()[1] == {'shared': 1, 'one_hop': 1}
    with admin_client.connected(running.state_path) as keeper:
        while keeper.list()[1]:
            pass


@pytest.mark.parametrize('said', [{'mode': 'process'}, {'holds': None}, {'serve': {}}])
def test_who_speaks_otherwise_than_a_worker_is_sent_away(running, said):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(os.path.join(running.state_path, 'listeners'))
        protocol.send(connection, said)
        assert connection.recv(1) == b''


def test_a_hand_back_that_does_not_fit_is_answered_with_leave(running):
    """A worker, unprivileged, says of a socket of its own that it is a router's."""
    listener = Listener('shared', 'no-such-one', 9697, router_id='a')
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
        socket.create_server(('127.0.0.1', 0)) as own,
    ):
        connection.settimeout(10)
        connection.connect(os.path.join(running.state_path, 'listeners'))
        protocol.send(connection, {'mode': 'shared'})
        protocol.send(connection, {'holds': listener.to_json()}, own.fileno())
        assert protocol.receive(connection) == ({'leave': 'a'}, None)


def test_one_listener_or_all_of_an_id_are_detached(tmp_path):
    hosts = ('127.0.0.1', '127.0.0.2', '127.0.0.3')
    first, *others = [Listener('shared', 'here', 80, network_id='c', host=host) for host in hosts]
    running = Running(tmp_path, opener=FakeOpener())
    try:
        with admin_client.connected(running.state_path) as keeper:
            assert [keeper.attach(one) for one in (first, *others)] == [True] * 3
            assert [keeper.detach_one(first), keeper.detach_one(first)] == [True, False]
            assert keeper.list('c')[0] == others
            assert [keeper.detach('d'), keeper.detach('c')] == [False, True]
            assert keeper.list('c')[0] == []
    finally:
        running.close()


def test_what_a_store_gives_back_of_a_namespace_that_is_gone_is_closed(running, caplog):
    caplog.set_level('INFO')
    listener = Listener('shared', 'no-such-one', 9697, router_id='a')
    stored = socket.create_server(('127.0.0.1', 0))
    running.keeper.take_back([(listener, stored)])
    assert stored.fileno() == -1
    assert 'is not taken back' in caplog.text


def test_a_keeper_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NetnsError, match='start metadata-wsgi keeper'), admin_client.connected(str(tmp_path)):
        pass


def test_a_keeper_is_root_or_who_asks():
    """A worker that was taken over could make a socket of that name, and be handed what root asks to be kept."""
    assert [admin_client.may_keep(uid, own=0) for uid in (0, 42)] == [True, False]
    assert [admin_client.may_keep(uid, own=42) for uid in (0, 42, 43)] == [True, True, False]


@pytest.mark.skipif(os.geteuid() != 0, reason='listens as another user: run it as root')
def test_a_keeper_of_another_user_is_asked_nothing(tmp_path):
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(admin_client.path(str(tmp_path)))
    # The kernel takes down who listens when listen is called.
    os.seteuid(65534)
    try:
        listening.listen()
    finally:
        os.seteuid(0)
    with listening, pytest.raises(NetnsError, match='is uid 65534'), admin_client.connected(str(tmp_path)):
        pass


@pytest.mark.parametrize(
    ('uid', 'groups', 'may'),
    [(0, [0], True), (42, [7], True), (43, [7, 99], True), (43, [7], False), (43, [42], False)],
)
def test_who_may_follow(uid, groups, may):
    """The socket is 42's and group 99's."""
    owner = os.stat_result((stat.S_IFSOCK | 0o660, 0, 0, 1, 42, 99, 0, 0, 0, 0))
    assert may_follow(uid, groups, owner) is may


def test_a_group_that_may_not_write_may_not_follow():
    owner = os.stat_result((stat.S_IFSOCK | 0o600, 0, 0, 1, 42, 99, 0, 0, 0, 0))
    assert may_follow(43, [99], owner) is False
