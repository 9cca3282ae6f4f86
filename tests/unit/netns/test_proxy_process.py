# SPDX-License-Identifier: Apache-2.0
"""Processes are real here, and short-lived: what a pid means is the kernel's to say."""

import os
import signal
import socket
import subprocess
import sys

import pytest

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
def pid_file(tmp_path):
    return str(tmp_path / 'external' / 'pids' / f'{UUID}.pid')


def write(pid_file, text):
    os.makedirs(os.path.dirname(pid_file), exist_ok=True)
    with open(pid_file, 'w') as file:
        file.write(str(text))


@pytest.mark.parametrize('text', ['', 'abc', '-1', '0', '12 13'])
def test_what_is_no_number_is_no_pid(pid_file, text):
    write(pid_file, text)
    assert proxy_process.pid(pid_file) is None
    assert proxy_process.active(pid_file, UUID) is None


def test_active_means_alive_with_the_id_in_its_command_line(start, pid_file):
    child, _ = start(SLEEP)
    assert proxy_process.active(pid_file, UUID) is None
    write(pid_file, f'{child.pid}\n')
    assert proxy_process.active(pid_file, UUID) == child.pid
    assert proxy_process.active(pid_file, OTHER) is None
    child.communicate()
    assert proxy_process.active(pid_file, UUID) is None


def test_a_process_is_ended_politely_and_its_file_removed(start, pid_file):
    child, _ = start(SLEEP)
    write(pid_file, child.pid)
    assert proxy_process.disable(pid_file, UUID) is True
    assert child.wait() == -signal.SIGTERM
    assert not os.path.exists(pid_file)
    assert proxy_process.disable(pid_file, UUID) is False


def test_a_process_that_ignores_sigterm_is_killed(start, pid_file):
    child, _ = start(STUBBORN)
    write(pid_file, child.pid)
    assert proxy_process.disable(pid_file, UUID, patience_s=0.1) is True
    assert child.wait() == -signal.SIGKILL


def test_a_reused_pid_is_left_alone(start, pid_file):
    """The file is stale and its number belongs to somebody else by now."""
    child, _ = start(SLEEP, uuid=OTHER)
    write(pid_file, child.pid)
    assert proxy_process.disable(pid_file, UUID) is False
    assert child.poll() is None
    assert not os.path.exists(pid_file)


def test_a_wanted_process_is_adopted(start, pid_file):
    child, _ = start(SLEEP)
    write(pid_file, child.pid)
    asked, spawned = [], []
    assert proxy_process.enable(pid_file, UUID, spawned.append, wanted=lambda pid: asked.append(pid) or True) is False
    assert (asked, spawned) == ([child.pid], [])
    assert child.poll() is None


def test_an_unwanted_process_is_ended_before_the_new_one_starts(start, pid_file):
    child, _ = start(SLEEP)
    write(pid_file, child.pid)
    ended_by_then = []

    def spawn(name):
        ended_by_then.append((name, child.wait(), os.path.exists(name)))

    assert proxy_process.enable(pid_file, UUID, spawn, wanted=lambda pid: False) is True
    assert ended_by_then == [(pid_file, -signal.SIGTERM, False)]


def test_the_directory_of_the_pid_file_is_made(pid_file):
    spawned = []
    assert proxy_process.enable(pid_file, UUID, spawned.append, wanted=lambda pid: False) is True
    assert spawned == [pid_file]
    assert os.stat(os.path.dirname(pid_file)).st_mode & 0o777 == 0o755


def test_listens_tells_this_process_from_another_on_the_same_port(start):
    listening, port = start(LISTEN)
    silent, _ = start(SLEEP)
    assert proxy_process.listens(listening.pid, int(port))
    assert not proxy_process.listens(silent.pid, int(port))
    assert not proxy_process.listens(listening.pid, int(port) % 65535 + 1)


def test_a_process_that_is_gone_listens_nowhere(start):
    child, port = start(LISTEN)
    child.communicate()
    assert not proxy_process.listens(child.pid, int(port))


def test_a_socket_that_is_taken_over_outlives_its_process_with_who_waits_in_it(start, pid_file):
    child, port = start(LISTEN)
    write(pid_file, child.pid)
    (taken,) = proxy_process.take(pid_file, UUID, int(port))
    with taken, socket.create_connection(('127.0.0.1', int(port)), timeout=5) as waiting:
        child.kill()
        child.wait()
        accepted, _ = taken.accept()
        with accepted:
            accepted.sendall(b'served')
            assert waiting.recv(6) == b'served'


def test_nothing_is_taken_from_a_process_of_somebody_else_or_of_another_port(start, pid_file):
    child, port = start(LISTEN)
    write(pid_file, child.pid)
    assert proxy_process.take(pid_file, OTHER, int(port)) == []
    assert proxy_process.take(pid_file, UUID, int(port) - 1) == []
    child.kill()
    child.wait()
    assert proxy_process.take(pid_file, UUID, int(port)) == []


def test_who_serves_a_unix_socket_is_told_by_the_kernel(start, tmp_path):
    path = str(tmp_path / 'socket')
    child, _ = start(
        f'import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind({path!r}); s.listen(); '
        'print("up", flush=True); input()'
    )
    assert proxy_process.serving(path, socket.SOCK_SEQPACKET) == child.pid
    with pytest.raises(OSError, match='No such file'):
        proxy_process.serving(path + '-not')
