# SPDX-License-Identifier: Apache-2.0
"""The keeper's event loop with real unix sockets, and listeners in the current namespace; no root needed."""

import contextlib
import ctypes
import errno
import os
import pathlib
import resource
import socket
import stat
import subprocess
import sys
import threading
import types

import pytest

from metadata_wsgi.errors import ConfigError, NetnsError
from metadata_wsgi.keeper import admin_client, protocol, server
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.server import Keeper, may_subscribe
from tests.e2e.conftest import eventually
from tests.fakes import FakeClock
from tests.unit.keeper.loopback_keeper import StoredSockets

SETRESUID = {'x86_64': 117, 'aarch64': 147}.get(os.uname().machine)


class FakeOpener:
    """Every namespace is the current one, and every port a free one."""

    def open(self, listener):
        return socket.create_server((listener.host, 0))

    def is_valid(self, listener, sock):
        return sock.getsockname()[0] == listener.host

    def inode(self, sock):
        return os.fstat(sock.fileno()).st_ino

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
        self.thread.join(60)
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
        assert 'the verb must be' in protocol.receive(connection)[0]['error']
        connection.send(b'nonsense')
        assert connection.recv(1) == b''
    with admin_client.connect(running.state_path) as keeper:
        assert keeper.list() == ([], {})


def test_a_holder_gets_no_request_while_no_worker_is_subscribed(running, monkeypatch):
    """Its program would wait for a worker, and fail."""
    requests = []
    monkeypatch.setattr(running.keeper._holders, 'request_sockets', lambda registered: requests.append(1) or [])
    with admin_client.connect(running.state_path) as keeper:
        keeper.list()
        keeper.list()
        assert requests == []
        with running.subscribe():
            eventually(lambda: (keeper.list(), requests)[1], 'a request')


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
    assert 'is closed: its namespace was deleted' in caplog.text


def test_client_names_an_unavailable_keeper(tmp_path):
    with pytest.raises(NetnsError, match='start metadata-wsgi keeper'), admin_client.connect(str(tmp_path)):
        pass


def test_client_trusts_a_keeper_of_root_or_of_its_own_user():
    """A compromised worker could create a socket of that name, and receive the sockets that root hands over."""
    assert [protocol.is_root_or_own(uid, own_uid=0) for uid in (0, 42)] == [True, False]
    assert [protocol.is_root_or_own(uid, own_uid=42) for uid in (0, 42, 43)] == [True, True, False]


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


@pytest.mark.skipif(os.geteuid() != 0, reason='changes its groups: run it as root')
def test_supplementary_groups_of_a_worker_are_seen(running):
    """As with SupplementaryGroups= of a unit."""
    path = os.path.join(running.state_path, 'listeners')
    os.chmod(running.state_path, 0o755)
    os.chown(path, 0, 4242)
    running.keeper._workers_socket = os.lstat(path)
    code = (
        'import os, socket, sys\n'
        'os.setgroups([4241, 4242]); os.setgid(61235); os.setuid(61235)\n'
        'connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n'
        'connection.connect(sys.argv[1])\n'
        """connection.send(b'{"mode": "shared"}'); connection.send(b'{"holds": null}')\n"""
        'print(connection.recv(100))\n'
    )
    done = subprocess.run([sys.executable, '-S', '-c', code, path], capture_output=True, text=True, check=False)
    assert done.stdout == 'b\'{"complete": true}\'\n', done.stderr


def open_descriptors():
    return len(os.listdir('/proc/self/fd'))


@pytest.mark.parametrize('message', [{'mode': 'shared'}, {'holds': None}, {'holds': {}}, {'more': 1}])
@pytest.mark.parametrize('kind', ['file', 'socket'])
def test_descriptors_of_a_worker_that_are_not_used_are_closed(running, message, kind):
    """A compromised worker sends descriptors until the keeper has as many as it may."""
    before = open_descriptors()
    with open('/dev/null') as file, socket.create_server(('127.0.0.1', 0)) as sock:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(10)
                connection.connect(os.path.join(running.state_path, 'listeners'))
                protocol.send(connection, {'mode': 'shared'})
                protocol.send(connection, message, {'file': file, 'socket': sock}[kind].fileno())
                assert connection.recv(1) == b''
    eventually(lambda: open_descriptors() <= before, 'the descriptors are closed')


@pytest.mark.parametrize(
    'message', [{'verb': 'list'}, {'verb': 'detach', 'id': 'a'}, {'verb': 'attach'}, {'verb': 'x'}]
)
def test_descriptors_of_a_request_that_are_not_used_are_closed(running, message):
    reading, writing = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(admin_client.socket_path(running.state_path))
        protocol.send(connection, message, writing.fileno())
        writing.close()
        protocol.receive(connection)
        reading.settimeout(10)
        assert reading.recv(1) == b''
        reading.close()


def test_accept_without_descriptors_left_pauses_and_logs_once(running, caplog, monkeypatch):
    """It would spin, and write a line for each turn."""
    monkeypatch.setattr(server, 'ACCEPT_BACKOFF_S', 0.2)
    turns = []
    poll_once = running.keeper.poll_once
    running.keeper.poll_once = lambda: (turns.append(1), poll_once())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        first.settimeout(10)
        # Opened before: a connection in the queue needs no descriptor of the keeper yet.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first.fileno() + 1, limit[1]))
        try:
            first.connect(admin_client.socket_path(running.state_path))
            del turns[:]
            eventually(lambda: 'No connections are accepted' in caplog.text, 'the keeper has no descriptor left')
            eventually(lambda: len(turns) >= 2, 'its event loop runs')
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        protocol.send(first, {'verb': 'list'})
        assert protocol.receive(first)[0]['listeners'] == []
    assert len(turns) < 50
    assert caplog.text.count('No connections are accepted') == 1


def test_worker_connections_are_limited(running, monkeypatch):
    monkeypatch.setattr(server, 'MAX_WORKER_CONNECTIONS', 2)
    with running.subscribe(), running.subscribe():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as third:
            third.settimeout(10)
            third.connect(os.path.join(running.state_path, 'listeners'))
            assert third.recv(1) == b''
        with admin_client.connect(running.state_path) as keeper:
            assert keeper.list()[1] == {'shared': 2}


def test_worker_that_does_not_read_its_refusals_is_disconnected(running, monkeypatch):
    """They would fill the memory of the keeper."""
    monkeypatch.setattr(server, 'MAX_QUEUED_REFUSALS', 50)
    listener = Listener('shared', 'no-such-one', 9697, router_id='a')
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own = socket.create_server(('127.0.0.1', 0))

    def send_many():
        for _ in range(100000):
            protocol.send(connection, {'holds': listener.to_json()}, own.fileno())

    with connection, own:
        connection.settimeout(10)
        connection.connect(os.path.join(running.state_path, 'listeners'))
        protocol.send(connection, {'mode': 'shared'})
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_many()


@pytest.mark.skipif(os.geteuid() != 0 or not SETRESUID, reason='connects as another user: run it as root')
def test_requests_of_another_user_are_refused_whatever_the_mode_of_the_socket(running):
    os.chmod(running.state_path, 0o755)
    path = admin_client.socket_path(running.state_path)
    os.chmod(path, 0o666)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        # For this thread only: the keeper's is another one.
        libc = ctypes.CDLL(None)
        libc.syscall(SETRESUID, -1, 65534, -1)
        try:
            connection.connect(path)
        finally:
            libc.syscall(SETRESUID, -1, 0, -1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            protocol.send(connection, {'verb': 'list'})
            assert connection.recv(1) == b''


def test_second_keeper_is_refused(running):
    with pytest.raises(ConfigError, match=r'^state_path = .*/keeper: another keeper is running and listens there; '):
        Keeper(running.state_path)


def test_keeper_ends_at_sigterm_without_waiting_for_its_next_poll(tmp_path):
    """A signal handler that only sets a flag runs within select(), which then goes on to wait."""
    code = (
        'import sys; from metadata_wsgi.keeper import server; server.POLL_S = 3600.0\n'
        'keeper = server.Keeper(sys.argv[1]); keeper._poll_s = 3600.0; keeper.run()'
    )
    with subprocess.Popen([sys.executable, '-c', code, str(tmp_path)]) as process:
        eventually(lambda: is_connected(tmp_path), 'the keeper accepts requests')
        stat_file = pathlib.Path(f'/proc/{process.pid}/stat')
        eventually(lambda: stat_file.read_text().rpartition(')')[2].split()[0] == 'S', 'it waits')
        process.terminate()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def is_connected(state_path):
    try:
        with admin_client.connect(str(state_path)) as keeper:
            return keeper.list() == ([], {})
    except NetnsError:
        return False


def test_namespace_made_again_is_reconciled_after_a_pause_of_the_keeper(tmp_path, monkeypatch):
    """The second change comes just after a reconcile, and then the process does not run for a long time."""
    clock, changed_at, calls = FakeClock(), 1.0, []
    monkeypatch.setattr(server.namespaces, 'changed_at', lambda: changed_at)
    monkeypatch.setattr(server, 'time', types.SimpleNamespace(monotonic=clock))
    keeper = Keeper(str(tmp_path))
    keeper._registry.reconcile = lambda: calls.append(changed_at) or []
    try:
        keeper._reconcile_if_due()
        changed_at = 2.0
        clock.sleep(0.1)
        keeper._reconcile_if_due()
        clock.sleep(60.0)
        keeper._reconcile_if_due()
    finally:
        keeper.close()
    assert calls == [1.0, 2.0]


class OpenerWithoutDescriptors(FakeOpener):
    """``descriptors``: whether sockets can be checked. The namespaces of all sockets are deleted."""

    descriptors = False

    def is_valid(self, listener, sock):
        if not self.descriptors:
            raise OSError(errno.EMFILE, 'Too many open files')
        return False

    def namespace_exists(self, listener):
        return False


def test_stored_socket_that_cannot_be_checked_stays_in_the_store(tmp_path, caplog):
    store, opener = StoredSockets(), OpenerWithoutDescriptors()
    listener, stored = Listener('shared', 'here', 80, router_id='a', host='127.0.0.1'), socket.create_server(('', 0))
    store.add(listener, stored)
    keeper = Keeper(str(tmp_path), opener=opener, fdstore=store)
    try:
        keeper.restore([(listener, stored)])
        assert (list(store.stored), len(keeper._registry), stored.fileno()) == ([listener], 0, -1)
        assert caplog.text.count('Too many open files') == 1
    finally:
        keeper.close()
        store.remove(listener)


def test_requests_to_holders_without_descriptors_left_do_not_end_the_keeper(running, monkeypatch):
    def fail(registered):
        raise OSError(errno.EMFILE, 'Too many open files')

    monkeypatch.setattr(running.keeper._holders, 'request_sockets', fail)
    monkeypatch.setattr(running.keeper._registry, 'subscriber_counts', lambda: {'shared': 1})
    running.keeper._request_sockets()


def test_reconcile_without_descriptors_left_is_repeated_and_logged_once(tmp_path, monkeypatch, caplog):
    clock, opener = FakeClock(), OpenerWithoutDescriptors()
    monkeypatch.setattr(server.namespaces, 'changed_at', lambda: 1.0)
    monkeypatch.setattr(server, 'time', types.SimpleNamespace(monotonic=clock))
    keeper = Keeper(str(tmp_path), opener=opener)
    try:
        keeper._registry.register(Listener('shared', 'here', 80, router_id='a', host='127.0.0.1'))
        for _ in range(20):
            clock.sleep(1.0)
            keeper._reconcile_if_due()
        assert len(keeper._registry) == 1
        assert caplog.text.count('Too many open files') == 1
        opener.descriptors = True
        clock.sleep(1.0)
        keeper._reconcile_if_due()
        assert len(keeper._registry) == 0
    finally:
        keeper.close()


def test_socket_of_a_worker_that_cannot_be_checked_is_not_refused(tmp_path):
    """A refused worker would close the socket. A disconnected worker sends it again."""
    running = Running(tmp_path, opener=OpenerWithoutDescriptors())
    before = open_descriptors()
    try:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
            socket.create_server(('127.0.0.1', 0)) as sock,
        ):
            connection.settimeout(10)
            connection.connect(os.path.join(running.state_path, 'listeners'))
            protocol.send(connection, {'mode': 'shared'})
            listener = Listener('shared', 'here', 80, router_id='a', host='127.0.0.1')
            protocol.send(connection, {'holds': listener.to_json()}, sock.fileno())
            assert connection.recv(1) == b''
        eventually(lambda: open_descriptors() <= before, 'the descriptors are closed')
    finally:
        running.close()


def test_request_without_descriptors_left_has_a_reason(tmp_path):
    running = Running(tmp_path, opener=OpenerWithoutDescriptors())
    listener = Listener('shared', 'here', 80, router_id='a', host='127.0.0.1')
    try:
        with admin_client.connect(running.state_path) as keeper, socket.create_server(('127.0.0.1', 0)) as sock:
            with pytest.raises(NetnsError, match='Too many open files'):
                keeper.register(listener, sock)
            assert keeper.list() == ([], {})
    finally:
        running.close()
