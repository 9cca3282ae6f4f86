# SPDX-License-Identifier: Apache-2.0
"""The namespace proxy as a daemon: relative paths, and where it logs when its standard error has ended."""

import http.client
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from metadata_wsgi.cli import namespace_proxy
from tests.e2e.conftest import BIN, eventually, free_port, request


@pytest.fixture
def daemon(tmp_path):
    """Starts the proxy in ``tmp_path`` with a relative pid file; returns (its exit code and output, its port)."""
    pid_file = tmp_path / 'r.pid'

    def start(*argv):
        port = free_port()
        done = subprocess.run(
            [BIN / 'quantum-ns-metadata-proxy', '--router_id=router-a', f'--metadata_port={port}',
             '--metadata_host=127.0.0.1', '--pid_file=r.pid', *argv],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done, port

    yield start
    if pid_file.exists():
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        eventually(lambda: not pid_file.exists(), 'the pid file is removed at the end of the daemon')


@pytest.mark.parametrize('paths', [['--state_path=state'], ['--metadata_proxy_socket=state/metadata_proxy']])
def test_daemonize_with_relative_paths(agent, daemon, guest, cloud, tmp_path, paths):
    """The daemon changes to /, and the paths are those of its caller."""
    agent()
    assert str(cloud.state_path) == str(tmp_path / 'state')
    done, port = daemon(*paths)
    assert done.returncode == 0, done.stderr
    assert guest(port)[0] == 200


def status(port):
    return request(http.client.HTTPConnection('127.0.0.1', port, timeout=20), 'GET', '/')[0]


def test_daemonize_without_syslog_warns_before_its_standard_error_ends(daemon):
    if Path('/dev/log').exists():
        pytest.skip('there is a /dev/log')
    done, port = daemon('--use_syslog', '--state_path=state', '--request_timeout=0.1')
    assert done.returncode == 0
    assert 'syslog cannot be reached at /dev/log: logging to standard error, and not at all once it' in done.stderr
    assert status(port) == 503


@pytest.mark.parametrize('argv', [['--daemonize'], ['--daemonize', '--use_syslog']])
def test_daemonize_logs_to_syslog_unless_a_file_is_given(tmp_path, monkeypatch, argv):
    """Standard error leads nowhere then."""
    syslog = str(tmp_path / 'log')
    monkeypatch.setattr(namespace_proxy, 'SYSLOG', syslog)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(syslog)
        assert 'SysLogHandler' in handler_names('--router_id=r', *argv)
        file = tmp_path / 'file'
        assert handler_names('--router_id=r', '--daemonize', f'--log-file={file}') == ['WatchedFileHandler']


def handler_names(*argv):
    """The classes of the log handlers for this command line."""
    handlers = namespace_proxy._log_handlers(namespace_proxy.make_parser().parse_args(argv), 'r')
    for handler in handlers:
        handler.close()
    return [type(handler).__name__ for handler in handlers]


def test_foreground_without_syslog_logs_to_standard_error(proxy):
    if Path('/dev/log').exists():
        pytest.skip('there is a /dev/log')
    program, port = proxy(None, '--use_syslog', '--request_timeout=0.1')
    assert 'syslog cannot be reached at /dev/log: logging to standard error\n' in program.text()
    assert status(port) == 503
    eventually(lambda: 'no response from the metadata agent' in program.text(), program.text)
