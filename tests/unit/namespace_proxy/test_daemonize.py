# SPDX-License-Identifier: Apache-2.0
"""The exit code that the caller gets, and the state of the daemon. In child processes: the caller never returns.

Coverage does not measure most of it: it does not follow a fork.
"""

import os
import signal
import subprocess
import sys

import pytest

PREAMBLE = 'import os, sys\nfrom metadata_wsgi.namespace_proxy import daemonize\nready = daemonize.daemonize()\n'


@pytest.fixture
def call():
    """Run ``script`` after ``daemonize``; returns the exit code of the calling process."""

    def run(script, *arguments):
        argv = [sys.executable, '-c', PREAMBLE + script, *map(str, arguments)]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode

    return run


def test_daemonize_caller_exits_when_the_daemon_is_ready(call, tmp_path):
    """Everything before ``ready`` has happened when the caller returns."""
    script = 'import time\ntime.sleep(0.3)\nopen(sys.argv[1], "w").write("done")\nready()\n'
    assert call(script, tmp_path / 'done') == 0
    assert (tmp_path / 'done').read_text() == 'done'


@pytest.mark.parametrize('script', ['sys.exit(0)', 'sys.exit(3)', 'os.kill(os.getpid(), 9)'])
def test_daemonize_caller_fails_if_the_daemon_ends_before_it_is_ready(call, script):
    assert call(script) == 1


def test_daemonize_changes_session_directory_and_umask(call, tmp_path):
    script = (
        'found = [os.getcwd(), os.getsid(0) != os.getsid(int(sys.argv[2])), os.getsid(0) != os.getpid(), os.umask(0)]\n'
        'with open(sys.argv[1], "w") as out: out.write(repr(found))\n'
        'ready()\n'
    )
    assert call(script, tmp_path / 'found', os.getpid()) == 0
    assert (tmp_path / 'found').read_text() == repr(['/', True, True, 0o022])


def test_daemonize_releases_the_streams_of_the_caller(tmp_path):
    """A process that reads the caller's output to its end must not wait for the daemon."""
    script = (
        'import time\nopen(sys.argv[1], "w").write(str(os.getpid()))\nready()\n'
        'print("not received", flush=True)\ntime.sleep(60)\n'
    )
    argv = [sys.executable, '-c', PREAMBLE + script, str(tmp_path / 'pid')]
    try:
        caller = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    finally:
        os.kill(int((tmp_path / 'pid').read_text()), signal.SIGKILL)
    assert (caller.returncode, caller.stdout, caller.stderr) == (0, '', '')
