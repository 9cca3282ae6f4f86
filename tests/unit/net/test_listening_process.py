# SPDX-License-Identifier: Apache-2.0
"""The process that listens on a port, as the kernel shows it."""

import os
import socket
import subprocess
import sys

import pytest

from metadata_wsgi.net import listening_process

SCRIPT = (
    'import socket, sys\nlistener = socket.create_server(("127.0.0.1", 0))\n'
    'print(listener.getsockname()[1], flush=True)\nsys.stdin.read()\n'
)


@pytest.fixture
def program():
    """Starts a program that listens; returns (its process, its port)."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, '-c', SCRIPT, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_listening_process_is_found_with_pid_and_program_name(program):
    process, port = program()
    found = listening_process.find(port)
    with open(f'/proc/{process.pid}/comm') as file:
        assert (found.pid, found.program, found.is_own) == (process.pid, file.read().strip(), False)


def test_listening_process_that_is_one_of_our_programs(program):
    _, port = program('/usr/bin/quantum-ns-metadata-proxy', '--router_id=r')
    assert listening_process.find(port).is_own


def test_listening_process_is_none_for_a_free_port():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
        assert listening_process.find(port).pid <= os.getpid()
    assert listening_process.find(port) is None


def test_listening_process_ignores_a_port_that_is_connected_only():
    listener = socket.create_server(('127.0.0.1', 0))
    with listener, socket.create_connection(listener.getsockname()) as client:
        assert listening_process.find(client.getsockname()[1]) is None


def test_listening_process_message_names_namespace_and_another_port():
    process = listening_process.ListeningProcess(4711, 'haproxy', is_own=False)
    assert process.message(9697, 'qrouter-r') == (
        'metadata_port: port 9697 in qrouter-r is used by pid 4711 (haproxy): stop it, or use --metadata-port 9698'
    )
    assert ' in this network namespace is used ' in process.message(9697, '')
