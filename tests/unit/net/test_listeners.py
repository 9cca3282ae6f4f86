# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from metadata_wsgi import limits
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.net import listeners
from metadata_wsgi.net.listening_process import ListeningProcess
from tests.fakes import FakeClock
from tests.ipv6_loopback import needs_ipv6_loopback


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'state' / 'metadata_proxy')


@pytest.mark.parametrize(
    ('name', 'user', 'group', 'bits'),
    [
        ('user', '', '', 0o600), ('group', '', '', 0o660), ('all', '', '', 0o666),
        ('deduce', '', '', 0o660), ('deduce', 'quantum', '', 0o600), ('deduce', '', 'quantum', 0o660),
        ('deduce', 'quantum', 'quantum', 0o660),
    ],
)  # fmt: skip
def test_unix_socket_mode_is_deduced_from_owner_and_group(name, user, group, bits):
    assert listeners.socket_mode(name, user, group) == bits


@pytest.mark.parametrize('bits', [0o600, 0o660, 0o666])
def test_unix_socket_has_its_mode_and_owner(path, bits):
    with listeners.unix_listener(path, mode=bits, user=str(os.getuid()), group=str(os.getgid())):
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (bits, os.getuid(), os.getgid())


def test_unix_socket_leaves_the_umask_unchanged(path):
    before = os.umask(0o027)
    try:
        listeners.unix_listener(path, mode=0o660).close()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_unix_socket_replaces_a_stale_one(path):
    listeners.unix_listener(path, mode=0o660).close()
    assert os.path.exists(path)
    with listeners.unix_listener(path, mode=0o660), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.parametrize('queued', [0, 3], ids=['idle', 'with a full queue'])
def test_unix_socket_that_is_live_is_refused(path, queued):
    with listeners.unix_listener(path, mode=0o660, backlog=1):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(queued)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(path)
        with pytest.raises(ConfigError) as raised:
            listeners.unix_listener(path, mode=0o660, timeout_s=0)
        for client in clients:
            client.close()
    assert str(raised.value) == (
        f'metadata_proxy_socket = {path}: another agent is running and listens there; '
        'stop it first, or name another path'
    )


def test_unix_socket_of_a_stopping_agent_is_retried(path):
    """After a SIGKILL of the agent's master its workers listen for up to a second more."""
    dying = listeners.unix_listener(path, mode=0o660)
    with listeners.unix_listener(path, mode=0o660, timeout_s=60, sleep=lambda seconds: dying.close()):
        pass


def test_unix_socket_does_not_replace_a_regular_file(tmp_path):
    (tmp_path / 'precious').write_text('data')
    with pytest.raises(ConfigError, match='the file exists and is not a socket; name another path or remove it'):
        listeners.unix_listener(str(tmp_path / 'precious'), mode=0o660)
    assert (tmp_path / 'precious').read_text() == 'data'


def test_unix_socket_of_the_first_of_two_agents_that_start_together_stays(path, monkeypatch):
    """The second one looks when the first has called bind() and not yet listen()."""
    seconds_errors = []
    chown = os.chown

    def start_the_second(*args, **kwargs):
        monkeypatch.setattr(os, 'chown', chown)
        with pytest.raises(ConfigError, match='another agent is running') as raised:
            listeners.unix_listener(path, mode=0o660, timeout_s=0).close()
        seconds_errors.append(raised.value)
        return chown(*args, **kwargs)

    monkeypatch.setattr(os, 'chown', start_the_second)
    with listeners.unix_listener(path, mode=0o660), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    assert len(seconds_errors) == 1


def test_unix_socket_of_many_agents_that_start_together_is_one_that_listens(tmp_path):
    for attempt in range(5):
        path = str(tmp_path / f'metadata_proxy{attempt}')
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        barrier, go = os.pipe()
        results, report = os.pipe()
        children = []
        for _ in range(8):
            if not (pid := os.fork()):
                try:
                    os.close(go)
                    os.read(barrier, 1)
                    try:
                        listener = listeners.unix_listener(path, mode=0o660, timeout_s=0)
                    except ConfigError:
                        os.write(report, b'-')
                    else:
                        os.write(report, b'+')
                        signal.pause()
                        listener.close()
                finally:
                    os._exit(0)
            children.append(pid)
        os.close(barrier)
        os.close(go)
        outcome = b''.join(os.read(results, 1) for _ in children)
        try:
            assert outcome.count(b'+') == 1, outcome
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(results)
            os.close(report)
        assert sorted(os.listdir(tmp_path)) == [f'metadata_proxy{n}' for n in range(attempt + 1)]


def test_unix_socket_lock_file_is_removed(path):
    with listeners.unix_listener(path, mode=0o660):
        assert os.listdir(os.path.dirname(path)) == ['metadata_proxy']


@pytest.mark.parametrize('swapped', ['symlink', 'hard link', 'file'])
def test_unix_socket_owner_and_mode_are_not_set_on_a_file_swapped_in(tmp_path, path, monkeypatch, swapped):
    """The owner of the directory may replace the socket after bind(); root must not give its target away."""
    precious = tmp_path / 'precious'
    precious.write_text('data')
    precious.chmod(0o600)
    before = precious.stat()
    bind = socket.socket.bind

    class Socket(socket.socket):
        def bind(self, address):
            bind(self, address)
            os.unlink(address)
            if swapped == 'symlink':
                os.symlink(precious, address)
            elif swapped == 'hard link':
                os.link(precious, address)
            else:
                os.close(os.open(address, os.O_CREAT | os.O_WRONLY, 0o600))

    monkeypatch.setattr(socket, 'socket', Socket)
    with pytest.raises(ConfigError, match='another process has replaced it'):
        listeners.unix_listener(path, mode=0o666)
    after = precious.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_unix_socket_is_closed_to_others_until_owner_and_group_are_set(path, monkeypatch):
    seen = []
    chown = os.chown

    def look(*args, **kwargs):
        seen.append(stat.S_IMODE(os.stat(path).st_mode))
        return chown(*args, **kwargs)

    monkeypatch.setattr(os, 'chown', look)
    listeners.unix_listener(path, mode=0o660, user=str(os.getuid()), group=str(os.getgid())).close()
    assert seen == [0o600, 0o660]


def test_unix_socket_does_not_replace_a_symlink(tmp_path):
    with listeners.unix_listener(str(tmp_path / 'other'), mode=0o600):
        pass
    (tmp_path / 'metadata_proxy').symlink_to('other')
    with pytest.raises(ConfigError, match='the file exists and is not a socket'):
        listeners.unix_listener(str(tmp_path / 'metadata_proxy'), mode=0o600)
    assert (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'user': 'no-such-user'}, 'metadata_proxy_user = no-such-user: there is no such user'),
        ({'group': 'no-such-group'}, 'metadata_proxy_group = no-such-group: there is no such group'),
    ],
)
def test_unix_socket_with_unknown_owner_or_group_is_refused(path, options, sentence):
    with pytest.raises(ConfigError) as raised:
        listeners.unix_listener(path, mode=0o660, **options)
    assert str(raised.value) == sentence
    assert not os.path.exists(path)


@pytest.mark.parametrize('name', ['file/metadata_proxy', 'file/deeper/metadata_proxy', 'x' * 120])
def test_unix_socket_path_that_cannot_be_created_is_named(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match=r'^metadata_proxy_socket = .*: '):
        listeners.unix_listener(str(tmp_path / name), mode=0o660)


@pytest.mark.parametrize(
    ('host', 'client'),
    [
        ('', '127.0.0.1'), pytest.param('', '::1', marks=needs_ipv6_loopback), ('127.0.0.1', '127.0.0.1'),
        pytest.param('::1', '::1', marks=needs_ipv6_loopback),
    ],
)  # fmt: skip
def test_tcp_listener_accepts_the_families_of_its_host(host, client):
    with listeners.tcp_listener(host, 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection((client, port), 5).close()


OWN = ListeningProcess(4711, 'python3', is_own=True)
FOREIGN = ListeningProcess(4711, 'haproxy', is_own=False)


def held(process):
    """What tcp_listener does with a port in use: (text of the error, number of retries)."""
    retries, clock = [], FakeClock()
    with pytest.MonkeyPatch.context() as patch, listeners.tcp_listener('127.0.0.1', 0) as first:
        patch.setattr(listeners, 'time', SimpleNamespace(monotonic=clock, sleep=clock.sleep))
        port = first.getsockname()[1]
        with pytest.raises(ConfigError) as raised:
            listeners.tcp_listener(
                '127.0.0.1',
                port,
                timeout_s=0.5,
                sleep=lambda s: retries.append(clock.sleep(s)),
                find_process=process,
            )
    return str(raised.value).replace(str(port), 'PORT').replace(str(port + 1), 'PORT+1'), len(retries)


def test_tcp_port_in_use_is_retried_until_the_timeout():
    message, retries = held(lambda port: None)
    assert message == 'metadata_port: cannot listen on 127.0.0.1 port PORT: Address already in use'
    assert retries >= 2


def test_tcp_port_of_another_program_is_retried_shortly_and_its_process_named(monkeypatch):
    monkeypatch.setattr(limits, 'FOREIGN_PORT_TIMEOUT_S', 0.0)
    message, retries = held(lambda port: FOREIGN)
    assert message.startswith('metadata_port: port PORT in ')
    assert message.endswith(' is used by pid 4711 (haproxy): stop it, or use --metadata-port PORT+1')
    assert retries == 0


def test_tcp_port_of_our_own_program_is_retried_until_the_timeout_and_then_named(monkeypatch):
    monkeypatch.setattr(limits, 'FOREIGN_PORT_TIMEOUT_S', 0.0)
    message, retries = held(lambda port: OWN)
    assert ' is used by pid 4711 (python3): ' in message
    assert retries >= 2


def test_tcp_port_of_a_stopping_process_is_retried():
    first = listeners.tcp_listener('127.0.0.1', 0)
    port = first.getsockname()[1]
    with listeners.tcp_listener('127.0.0.1', port, timeout_s=60, sleep=lambda seconds: first.close()) as second:
        assert second.getsockname()[1] == port


@pytest.mark.parametrize('host', ['not an address', '2001:db8::1'])
def test_tcp_address_that_is_not_local_is_named(host):
    with pytest.raises(ConfigError, match=r'^metadata_port: cannot listen on '):
        listeners.tcp_listener(host, 0, timeout_s=0)


MISSING_INTERFACE = 'fe80::a9fe:a9fe%no-interface'


@needs_ipv6_loopback
def test_tcp_listener_on_a_link_local_address_that_is_not_usable_yet():
    """Duplicate address detection takes seconds, and IPv4 must not wait for it."""
    with listeners.tcp_listener('fe80::a9fe:a9fe%lo', 0) as listener:
        address, _, _, zone = listener.getsockname()
        assert (address, socket.if_indextoname(zone)) == ('fe80::a9fe:a9fe', 'lo')


@needs_ipv6_loopback
def test_tcp_listeners_open_several_addresses(caplog):
    opened = listeners.tcp_listeners(['127.0.0.1', 'fe80::a9fe:a9fe%lo'], 0)
    assert [listener.getsockname()[0] for listener in opened] == ['127.0.0.1', 'fe80::a9fe:a9fe']
    assert caplog.messages == []
    for listener in opened:
        listener.close()


def test_tcp_listeners_warn_about_a_further_address_that_fails(caplog):
    (listener,) = listeners.tcp_listeners(['127.0.0.1', MISSING_INTERFACE], 0)
    assert listener.getsockname()[0] == '127.0.0.1'
    listener.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        f'Serving 127.0.0.1 only: metadata_port: cannot listen on [{MISSING_INTERFACE}]:0: '
    )


def test_tcp_listeners_raise_if_the_first_address_fails():
    with pytest.raises(ConfigError, match='no-interface'):
        listeners.tcp_listeners([MISSING_INTERFACE, '127.0.0.1'], 0)


def test_a_kept_unix_socket_is_used_only_if_its_file_is_at_the_path(tmp_path):
    path = str(tmp_path / 'socket')
    with listeners.unix_listener(path, mode=0o660) as kept:
        assert listeners.keep_unix_listener(kept, path, mode=0o660)
        assert not listeners.keep_unix_listener(kept, str(tmp_path / 'other'), mode=0o660)
        os.unlink(path)
        # Nobody could connect to it any more.
        assert not listeners.keep_unix_listener(kept, path, mode=0o660)


def test_a_kept_unix_socket_gets_the_mode_and_group_of_the_options(tmp_path):
    """After a chmod by hand, or a changed option. At SIGUSR1 the agent ended then: its workers still listened."""
    path = str(tmp_path / 'socket')
    with listeners.unix_listener(path, mode=0o660) as kept:
        os.chmod(path, 0o666)
        assert listeners.keep_unix_listener(kept, path, mode=0o660)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


def test_a_kept_unix_socket_with_a_full_backlog_gets_the_mode_of_the_options(tmp_path, monkeypatch):
    """The former workers serve, so there is soon a free place."""
    path = str(tmp_path / 'socket')
    monkeypatch.setattr(listeners, 'PROBE_TIMEOUT_S', 60)
    with contextlib.ExitStack() as opened:
        kept = opened.enter_context(listeners.unix_listener(path, mode=0o660, backlog=1))
        os.chmod(path, 0o666)
        for _ in range(3):
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(path)
        accepting = threading.Timer(0.1, lambda: [opened.enter_context(kept.accept()[0]) for _ in range(2)])
        accepting.start()
        is_kept = listeners.keep_unix_listener(kept, path, mode=0o660, backlog=1)
        accepting.join()
        assert is_kept
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_a_kept_unix_socket_gets_the_owner_of_the_options(tmp_path):
    path = str(tmp_path / 'socket')
    with listeners.unix_listener(path, mode=0o600) as kept:
        for user, group in (('61234', ''), ('', '61235'), ('61236', '61237'), ('', '')):
            assert listeners.keep_unix_listener(kept, path, mode=0o600, user=user, group=group)
            found = os.stat(path)
            assert (found.st_uid, found.st_gid) == (int(user or os.geteuid()), int(group or os.getegid()))


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_a_kept_unix_socket_in_a_setgid_directory_has_the_group_of_the_directory(tmp_path):
    os.chown(tmp_path, -1, 61235)
    tmp_path.chmod(0o2775)
    path = str(tmp_path / 'socket')
    with listeners.unix_listener(path, mode=0o660) as kept:
        assert listeners.keep_unix_listener(kept, path, mode=0o660)
        assert os.stat(path).st_gid == 61235


def test_a_kept_unix_socket_is_not_used_if_another_process_has_replaced_its_file(tmp_path):
    """Such as Neutron's agent. The file of the other process keeps its mode."""
    path = str(tmp_path / 'socket')
    other = """
import os, socket, sys
os.unlink(sys.argv[1])
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.chmod(sys.argv[1], 0o666)
print(flush=True)
sys.stdin.read()
"""
    with (
        listeners.unix_listener(path, mode=0o660) as kept,
        subprocess.Popen([sys.executable, '-c', other, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout.readline() == b'\n'
        assert not listeners.keep_unix_listener(kept, path, mode=0o660)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666


def test_a_unix_socket_that_does_not_listen_is_not_used(tmp_path):
    path = str(tmp_path / 'socket')
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(path)
        os.chmod(path, 0o660)
        assert not listeners.keep_unix_listener(bound, path, mode=0o660)
