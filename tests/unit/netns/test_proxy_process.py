# SPDX-License-Identifier: Apache-2.0
"""Namespace proxy processes and their pid files, with real, short-lived processes."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from metadata_wsgi import limits, safe_files
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import proxy_process

UUID = '6f1b4e0a-8f5e-4a57-9d0e-1f0c5a3f0d11'
OTHER = '00000000-8f5e-4a57-9d0e-1f0c5a3f0d11'

SLEEP = 'import sys; sys.stdout.write("up\\n"); sys.stdout.flush(); sys.stdin.read()'
STUBBORN = 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); ' + SLEEP
LISTEN = 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True); input()'


@pytest.fixture
def start():
    """Starts python code under an id; yields (process, its first line)."""
    started = []

    def start(code, uuid=UUID):
        child = subprocess.Popen(
            [sys.executable, '-c', code, f'--router_id={uuid}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(child)
        return child, child.stdout.readline().decode().strip()

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def start_with():
    """Starts a process with these further arguments."""
    started = []

    def start_with(arguments):
        child = subprocess.Popen(
            [sys.executable, '-c', SLEEP, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(child)
        child.stdout.readline()
        return child

    yield start_with
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def pid_file(tmp_path):
    return str(tmp_path / 'external' / 'pids' / f'{UUID}.pid')


def write(pid_file, text):
    os.makedirs(os.path.dirname(pid_file), exist_ok=True)
    with open(pid_file, 'w') as file:
        file.write(str(text))


@pytest.mark.parametrize('text', ['', 'abc', '-1', '0', '12 13'])
def test_pid_file_without_a_valid_number_has_no_pid(pid_file, text):
    write(pid_file, text)
    assert proxy_process.read_pid(pid_file) is None
    assert proxy_process.running_pid(pid_file, UUID) is None


def test_running_pid_needs_a_live_process_with_the_id_in_its_command_line(start, pid_file):
    child, _ = start(SLEEP)
    assert proxy_process.running_pid(pid_file, UUID) is None
    write(pid_file, f'{child.pid}\n')
    assert proxy_process.running_pid(pid_file, UUID) == child.pid
    assert proxy_process.running_pid(pid_file, OTHER) is None
    child.communicate()
    assert proxy_process.running_pid(pid_file, UUID) is None


def test_stop_sends_sigterm_and_removes_the_pid_file(start, pid_file):
    child, _ = start(SLEEP)
    write(pid_file, child.pid)
    assert proxy_process.stop(pid_file, UUID) is True
    assert child.wait() == -signal.SIGTERM
    assert not os.path.exists(pid_file)
    assert proxy_process.stop(pid_file, UUID) is False


def test_stop_sends_sigkill_after_the_timeout(start, pid_file):
    child, _ = start(STUBBORN)
    write(pid_file, child.pid)
    assert proxy_process.stop(pid_file, UUID, timeout_s=0.1) is True
    assert child.wait() == -signal.SIGKILL


def test_stale_pid_file_with_a_reused_pid_stops_nothing(start, pid_file):
    """The file is stale, and its number belongs to another process now."""
    child, _ = start(SLEEP, uuid=OTHER)
    write(pid_file, child.pid)
    assert proxy_process.stop(pid_file, UUID) is False
    assert child.poll() is None
    assert not os.path.exists(pid_file)


@pytest.mark.parametrize(
    'arguments',
    [
        ['--router_id', 'bash'],
        ['--network-id=bash'],
        ['-f', '/var/lib/neutron/ns-metadata-proxy/bash.conf'],
        ['--pid_file=/s/external/pids/bash.pid', '--port=1'],
    ],
)
def test_running_pid_matches_the_id_as_an_option_or_file_name(start_with, pid_file, arguments):
    write(pid_file, start_with(arguments).pid)
    assert proxy_process.running_pid(pid_file, 'bash') is not None


@pytest.mark.parametrize(
    'arguments',
    [['/bin/bash'], ['--router_id=bash-2'], ['--router_id=a-bash'], ['bash'], ['/home/bash/x.conf'], ['--shell=bash']],
)
def test_running_pid_does_not_match_the_id_elsewhere_in_a_command_line(start_with, pid_file, arguments):
    process = start_with(arguments)
    write(pid_file, process.pid)
    assert proxy_process.running_pid(pid_file, 'bash') is None
    assert proxy_process.stop(pid_file, 'bash') is False
    assert process.poll() is None


@pytest.mark.parametrize('kind', ['fifo', 'link', 'writable for others'])
def test_pid_file_that_another_user_could_have_made_is_not_read(start, pid_file, tmp_path, kind):
    """A FIFO would block, and a link would have root read, or later write, another file."""
    child, _ = start(SLEEP)
    write(pid_file, child.pid)
    if kind == 'writable for others':
        os.chmod(pid_file, 0o666)
    else:
        os.rename(pid_file, tmp_path / 'target')
        os.mkfifo(pid_file) if kind == 'fifo' else os.symlink(tmp_path / 'target', pid_file)
    assert proxy_process.running_pid(pid_file, UUID) is None
    assert proxy_process.stop(pid_file, UUID) is False
    assert not os.path.lexists(pid_file)
    assert child.poll() is None


def test_stop_timeout_is_longer_than_a_proxy_may_need():
    """SIGKILL would cut the requests in flight, which a proxy finishes for GRACEFUL_TIMEOUT_S."""
    assert proxy_process.STOP_TIMEOUT_S > limits.GRACEFUL_TIMEOUT_S


def test_ensure_running_adopts_a_wanted_process(start, pid_file):
    child, _ = start(SLEEP)
    write(pid_file, child.pid)
    queried, spawned = [], []
    assert (
        proxy_process.ensure_running(pid_file, UUID, spawned.append, is_wanted=lambda pid: queried.append(pid) or True)
        is False
    )
    assert (queried, spawned) == ([child.pid], [])
    assert child.poll() is None


def test_ensure_running_stops_an_unwanted_process_before_it_starts_a_new_one(start, pid_file):
    child, _ = start(SLEEP)
    write(pid_file, child.pid)
    ended_before_spawn = []

    def spawn(name):
        ended_before_spawn.append((name, child.wait(), os.path.exists(name)))

    assert proxy_process.ensure_running(pid_file, UUID, spawn, is_wanted=lambda pid: False) is True
    assert ended_before_spawn == [(pid_file, -signal.SIGTERM, False)]


def test_ensure_running_creates_the_directory_of_the_pid_file(pid_file):
    spawned = []
    assert proxy_process.ensure_running(pid_file, UUID, spawned.append, is_wanted=lambda pid: False) is True
    assert spawned == [pid_file]
    assert os.stat(os.path.dirname(pid_file)).st_mode & 0o777 == 0o755


def test_listens_checks_the_process_and_not_only_the_port(start):
    listening, port = start(LISTEN)
    silent, _ = start(SLEEP)
    assert proxy_process.listens(listening.pid, int(port))
    assert not proxy_process.listens(silent.pid, int(port))
    assert not proxy_process.listens(listening.pid, int(port) % 65535 + 1)


def test_port_is_open_while_a_socket_listens_and_not_for_connections_in_progress():
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        assert not proxy_process._can_bind(port)
        client = socket.create_connection(('127.0.0.1', port), timeout=5)
        accepted, _ = server.accept()
    with client, accepted:
        assert proxy_process._can_bind(port)


def test_listens_is_false_for_a_process_that_has_ended(start):
    child, port = start(LISTEN)
    child.communicate()
    assert not proxy_process.listens(child.pid, int(port))


def test_copied_listener_keeps_its_accept_queue_after_the_process_ends(start, pid_file):
    child, port = start(LISTEN)
    write(pid_file, child.pid)
    (copied,) = proxy_process.copy_proxy_listeners(pid_file, UUID, int(port))
    with copied, socket.create_connection(('127.0.0.1', int(port)), timeout=5) as waiting:
        child.kill()
        child.wait()
        accepted, _ = copied.accept()
        with accepted:
            accepted.sendall(b'served')
            assert waiting.recv(6) == b'served'


def test_copy_proxy_listeners_of_another_id_or_port_is_empty(start, pid_file):
    child, port = start(LISTEN)
    write(pid_file, child.pid)
    assert proxy_process.copy_proxy_listeners(pid_file, OTHER, int(port)) == []
    assert proxy_process.copy_proxy_listeners(pid_file, UUID, int(port) - 1) == []
    child.kill()
    child.wait()
    assert proxy_process.copy_proxy_listeners(pid_file, UUID, int(port)) == []


def test_unix_listener_pid_is_the_process_that_listens(start, tmp_path):
    path = str(tmp_path / 'socket')
    child, _ = start(
        f'import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind({path!r}); s.listen(); '
        'print("up", flush=True); input()'
    )
    assert proxy_process.unix_listener_pid(path, socket.SOCK_SEQPACKET) == child.pid
    with pytest.raises(OSError, match='No such file'):
        proxy_process.unix_listener_pid(path + '-not')


@pytest.mark.parametrize('number', [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ('module', 'name'), [(os, 'pidfd_open'), (safe_files, 'open_file'), (proxy_process.Path, 'read_bytes')]
)
def test_process_is_not_ended_because_descriptors_or_memory_are_exhausted(
    start, tmp_path, monkeypatch, module, name, number
):
    """Its pid file was removed, and another process was started beside it."""
    child, _ = start(SLEEP)
    pid_file = tmp_path / f'{UUID}.pid'
    pid_file.write_text(str(child.pid))
    with monkeypatch.context() as patch:

        def fail(*args, **options):
            raise OSError(number, os.strerror(number))

        patch.setattr(module, name, fail)
        for action in (proxy_process.running_pid, proxy_process.stop):
            with pytest.raises(NetnsError, match=f'{UUID}.*{os.strerror(number)}'):
                action(str(pid_file), UUID)
    assert proxy_process.running_pid(str(pid_file), UUID) == child.pid


@pytest.mark.parametrize('number', [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ('module', 'name', 'check'),
    [
        (os, 'scandir', lambda pid, port: proxy_process.listens(pid, port)),
        (os, 'readlink', lambda pid, port: proxy_process.listens(pid, port)),
        (proxy_process.Path, 'read_text', lambda pid, port: proxy_process.listens(pid, port)),
        (proxy_process.Path, 'read_bytes', lambda pid, port: proxy_process.is_holder(pid)),
    ],
    ids=['scandir', 'readlink', 'read_text', 'is_holder'],
)
def test_proxy_is_not_stopped_because_descriptors_or_memory_are_exhausted(
    start, tmp_path, monkeypatch, module, name, check, number
):
    """A proxy that serves did not seem to listen, and a holder was taken for a proxy."""
    child, port = start(LISTEN)
    pid_file = tmp_path / f'{UUID}.pid'
    pid_file.write_text(str(child.pid))

    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    def is_wanted(pid):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            return check(pid, int(port))

    with pytest.raises(NetnsError, match=os.strerror(number)):
        proxy_process.ensure_running(str(pid_file), UUID, pytest.fail, is_wanted=is_wanted)
    assert child.poll() is None
    assert proxy_process.running_pid(str(pid_file), UUID) == child.pid
