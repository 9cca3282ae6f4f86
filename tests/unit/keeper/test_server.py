# SPDX-License-Identifier: Apache-2.0
"""The keeper's event loop with real unix sockets, and listeners in the current namespace; no root needed."""

import os
import socket
import stat
import threading

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client, protocol
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.server import Keeper, may_subscribe
from tests.e2e.conftest import eventually


class FakeOpener:
    """Every namespace is the current one, and every port a free one."""

    def open(self, listener):
        return socket.create_server((listener.host, 0))

    def is_valid(self, listener, sock):
        return sock.getsockname()[0] == listener.host

    def is_same_socket(self, sock, other):
        return sock.getsockname() == other.getsockname()

    def namespace_exists(self, listener):
        return True


class Running:
    """A keeper whose event loop runs in a thread."""

    def __init__(self, state_path, **options):
        self.state_path = str(state_path)
        self.keeper = Keeper(self.state_path, **options)
        self.running = True
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while self.running:
            self.keeper.poll_once()

    def subscribe(self, mode='shared'):
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


def test_sockets_are_open_to_root_and_the_workers_group_only(running):
    modes = [stat.S_IMODE(os.stat(os.path.join(running.state_path, name)).st_mode) for name in ('keeper', 'listeners')]
    assert modes == [0o600, 0o660]


def test_failed_request_has_a_reason(running):
    with admin_client.connect(running.state_path) as keeper:
        with pytest.raises(NetnsError, match='there is no namespace no-such-one'):
            keeper.register(Listener('shared', 'no-such-one', 9697, router_id='a'))
        with pytest.raises(NetnsError, match='mode process'):
            keeper.register(Listener('process', 'no-such-one', 9697, router_id='a'))
        assert keeper.unregister_all('a') is False
        assert keeper.list() == ([], {})


def test_unknown_verb_and_malformed_packet_do_not_affect_other_clients(running):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(admin_client.socket_path(running.state_path))
        protocol.send(connection, {'verb': 'unknown'})
        assert 'one of the verbs' in protocol.receive(connection)[0]['error']
        connection.send(b'nonsense')
        assert connection.recv(1) == b''
    with admin_client.connect(running.state_path) as keeper:
        assert keeper.list() == ([], {})


def test_subscribers_are_counted_until_they_disconnect(running):
    with running.subscribe(), running.subscribe('one_hop'), admin_client.connect(running.state_path) as keeper:
        assert keeper.list()[1] == {'shared': 1, 'one_hop': 1}
    with admin_client.connect(running.state_path) as keeper:
        eventually(lambda: keeper.list()[1] == {}, 'the keeper noticed that its subscribers have gone')


@pytest.mark.parametrize('message', [{'mode': 'process'}, {'holds': None}, {'serve': {}}])
def test_worker_with_an_invalid_message_is_disconnected(running, message):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(os.path.join(running.state_path, 'listeners'))
        protocol.send(connection, message)
        assert connection.recv(1) == b''


def test_invalid_socket_sent_back_by_a_worker_is_refused(running):
    """An unprivileged worker sends a socket of its own as if it were a router's."""
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


def test_detach_closes_one_listener_or_all_of_an_id(tmp_path):
    hosts = ('127.0.0.1', '127.0.0.2', '127.0.0.3')
    first, *others = [Listener('shared', 'here', 80, network_id='c', host=host) for host in hosts]
    running = Running(tmp_path, opener=FakeOpener())
    try:
        with admin_client.connect(running.state_path) as keeper:
            assert [keeper.register(one) for one in (first, *others)] == [True] * 3
            assert [keeper.unregister(first), keeper.unregister(first)] == [True, False]
            assert keeper.list('c')[0] == others
            assert [keeper.unregister_all('d'), keeper.unregister_all('c')] == [False, True]
            assert keeper.list('c')[0] == []
    finally:
        running.close()


def test_stored_socket_of_a_deleted_namespace_is_closed(running, caplog):
    caplog.set_level('INFO')
    listener = Listener('shared', 'no-such-one', 9697, router_id='a')
    stored = socket.create_server(('127.0.0.1', 0))
    running.keeper.restore([(listener, stored)])
    assert stored.fileno() == -1
    assert 'is not restored' in caplog.text


def test_client_names_an_unavailable_keeper(tmp_path):
    with pytest.raises(NetnsError, match='start metadata-wsgi keeper'), admin_client.connect(str(tmp_path)):
        pass


def test_client_trusts_a_keeper_of_root_or_of_its_own_user():
    """A compromised worker could create a socket of that name, and receive the sockets that root hands over."""
    assert [admin_client.is_trusted_keeper(uid, own_uid=0) for uid in (0, 42)] == [True, False]
    assert [admin_client.is_trusted_keeper(uid, own_uid=42) for uid in (0, 42, 43)] == [True, True, False]


@pytest.mark.skipif(os.geteuid() != 0, reason='listens as another user: run it as root')
def test_client_sends_nothing_to_a_keeper_of_another_user(tmp_path):
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(admin_client.socket_path(str(tmp_path)))
    # SO_PEERCRED has the user that called listen().
    os.seteuid(65534)
    try:
        listening.listen()
    finally:
        os.seteuid(0)
    with listening, pytest.raises(NetnsError, match='has uid 65534'), admin_client.connect(str(tmp_path)):
        pass


@pytest.mark.parametrize(
    ('uid', 'groups', 'may'),
    [(0, [0], True), (42, [7], True), (43, [7, 99], True), (43, [7], False), (43, [42], False)],
)
def test_may_subscribe(uid, groups, may):
    """The socket belongs to user 42 and group 99."""
    owner = os.stat_result((stat.S_IFSOCK | 0o660, 0, 0, 1, 42, 99, 0, 0, 0, 0))
    assert may_subscribe(uid, groups, owner) is may


def test_group_without_write_permission_may_not_subscribe():
    owner = os.stat_result((stat.S_IFSOCK | 0o600, 0, 0, 1, 42, 99, 0, 0, 0, 0))
    assert may_subscribe(43, [99], owner) is False
