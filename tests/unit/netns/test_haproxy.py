# SPDX-License-Identifier: Apache-2.0
"""``adopt`` of a haproxy: here a program that has haproxy's arguments and listens on loopback."""

import os
import signal
import subprocess
import sys

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import haproxy
from tests.e2e.conftest import eventually, free_port
from tests.unit.test_haproxy_program import ID, LISTEN, PROGRAM, ROUTER, TOP, written

LISTENER = 'import socket, sys, time; s = socket.create_server(("127.0.0.1", int(sys.argv[1]))); time.sleep(60)'


@pytest.fixture
def proxy(tmp_path):
    port = free_port()
    path = written(tmp_path, TOP + LISTEN, binds=f'bind 127.0.0.1:{port}', headers=ROUTER)
    pid_file = tmp_path / 'external' / 'pids' / f'{ID}.pid.haproxy'
    pid_file.parent.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, '-IS', '-c', LISTENER, str(port), '-f', path])
    try:
        pid_file.write_text(f'{process.pid}\n')
        eventually(lambda: haproxy.proxy_process.listens(process.pid, port), 'the program listens')
        yield haproxy.running(str(tmp_path))[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason='copies the descriptors of another process')
@pytest.mark.parametrize('ends_before', [False, True])
def test_a_haproxy_is_adopted_even_if_it_ends_before_the_signal(tmp_path, proxy, ends_before):
    calls = []

    def run(argv, **_):
        calls.append(argv)
        if ends_before:
            os.kill(proxy.pid, signal.SIGKILL)
            os.waitpid(proxy.pid, 0)
        return ''

    assert haproxy.Conversion(str(tmp_path), str(PROGRAM), run).adopt(proxy) is True
    assert ['--hold' in argv for argv in calls] == [True]


def test_give_back_does_not_need_tcp_migrate_req(monkeypatch, tmp_path):
    """Before Linux 5.14 there is none, and in a container /proc/sys may be read-only."""
    monkeypatch.setattr(haproxy, 'TCP_MIGRATE_REQ', str(tmp_path / 'missing' / 'tcp_migrate_req'))
    haproxy._migrate_requests()


def test_give_back_does_not_take_a_new_holder_for_haproxy(monkeypatch, tmp_path):
    """A program of the settings may be a script that starts metadata-wsgi-haproxy."""
    monkeypatch.setattr(haproxy, 'START_TIMEOUT_S', 0.0)
    monkeypatch.setattr(haproxy.proxy_process, 'running_pid', lambda *_: 4712)
    monkeypatch.setattr(haproxy.proxy_process, 'is_holder', lambda pid: True)
    with pytest.raises(NetnsError, match='did not write its pid'):
        haproxy.Conversion(str(tmp_path), str(PROGRAM))._wait_for_haproxy(haproxy.Proxy(ID, 4711, 'x', False))


def test_the_real_haproxy_is_found_where_python_strips_docstrings(tmp_path):
    (tmp_path / 'haproxy').symlink_to(PROGRAM)
    code = 'import sys; from metadata_wsgi.netns import haproxy; print(*haproxy._loaded(sys.argv[1]).programs())'
    done = subprocess.run(
        [sys.executable, '-OO', '-c', code, str(PROGRAM)],
        env={**os.environ, 'PATH': str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path) not in done.stdout
