# SPDX-License-Identifier: Apache-2.0
"""Fixtures that start the real programs, on unix sockets in ``tmp_path`` and on loopback. No root is needed."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cloud import Cloud
from tests.owned_processes import kill_group

BIN = Path(sys.prefix, 'bin')


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def eventually(condition, description, within_s=60.0):
    """Wait until ``condition()`` is true; fail with ``description`` after ``within_s`` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, (
            f'not within {within_s} s: {description() if callable(description) else description}'
        )
        time.sleep(0.02)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__('localhost', timeout=20)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(connection, method, target, headers=None, body=None):
    """(status, headers, body) of one request on a new connection; without the headers Date, Server and Connection."""
    with contextlib.closing(connection):
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        headers = {k.lower(): v for k, v in response.getheaders() if k.lower() not in ('date', 'server', 'connection')}
        return response.status, headers, response.read()


class Program:
    """A running program; its output goes to the file ``log``."""

    def __init__(self, log, *argv, cwd=None, env=None):
        self.log = log
        with log.open('ab') as out:
            self.process = subprocess.Popen(
                [str(part) for part in argv],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def text(self):
        return self.log.read_text(errors='replace')

    def workers(self):
        return [int(pid) for pid in Path(f'/proc/{self.pid}/task/{self.pid}/children').read_text().split()]

    def has_workers(self):
        """Whether the master has started workers; before that, a signal terminates it instead of being handled."""
        return 'Booting worker' in self.text()

    def kill(self, number):
        os.kill(self.pid, number)

    def wait(self, within_s=60):
        return self.process.wait(within_s)

    def end(self):
        """SIGTERM; after 5 s SIGKILL to the whole process group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        kill_group(self.process)
        self.process.wait(60)


@contextlib.contextmanager
def programs_in(directory):
    """Starts programs by a name for the log in ``directory`` and a command line; stops all of them at the end."""
    started = []

    def start(name, *argv, **kwargs):
        program = Program(directory / f'{name}-{len(started)}.log', *argv, **kwargs)
        started.append(program)
        return program

    try:
        yield start
    finally:
        for program in started:
            program.end()


@pytest.fixture
def programs(tmp_path):
    """Starts programs of the package by name and arguments; stops all of them at the end."""
    with programs_in(tmp_path) as start:

        def start_program(name, *argv, **kwargs):
            # Paste files of tests name filters of tests.
            environ = {'PYTHONPATH': str(Path(__file__).parents[2]), **os.environ}
            return start(name, BIN / name, *argv, **{'env': environ, **kwargs})

        yield start_program


@pytest.fixture
def cloud(tmp_path):
    with Cloud(tmp_path) as made:
        yield made


def rejects_unidentified_request(path):
    """Whether the agent on the socket ``path`` is up: it responds 400 to a request without router or network id."""
    try:
        return request(UnixConnection(path), 'GET', '/')[0] == 400
    except OSError:
        return False


def accepts_connections(path):
    """Whether a process listens on the unix socket ``path``."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
def agent(programs, cloud):
    """Starts an agent on the socket of ``cloud`` and waits until it responds."""

    def start():
        program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
        eventually(
            lambda: (
                program.process.poll() is not None
                or (program.has_workers() and rejects_unidentified_request(cloud.socket))
            ),
            'the agent has loaded its pipeline',
        )
        assert program.process.poll() is None, program.text()
        return program

    return start


@pytest.fixture
def proxy(programs, cloud, tmp_path):
    """Starts a namespace proxy for ``cloud.router_id`` on loopback; returns (program, port)."""

    def start(port=None, *extra):
        port = port or free_port()
        program = programs(
            'quantum-ns-metadata-proxy', '--nodaemonize', '--verbose', f'--router_id={cloud.router_id}',
            f'--state_path={cloud.state_path}', f'--metadata_port={port}', '--metadata_host=127.0.0.1',
            f'--pid_file={tmp_path / "pids" / "r.pid"}', *extra,
        )  # fmt: skip

        eventually(lambda: program.process.poll() is not None or program.has_workers(), 'the proxy has workers')
        assert program.process.poll() is None, program.text()
        return program, port

    return start


@pytest.fixture
def guest():
    """Sends a request as a guest does: (port, method, target, ...) -> (status, headers, body)."""

    def send(port, method='GET', target='/openstack/latest/meta_data.json', *, timeout_s=20, **kwargs):
        return request(http.client.HTTPConnection('127.0.0.1', port, timeout=timeout_s), method, target, **kwargs)

    return send
