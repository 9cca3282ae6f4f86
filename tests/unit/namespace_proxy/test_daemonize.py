# SPDX-License-Identifier: Apache-2.0
"""What the caller of a daemon hears, and where the daemon is then. In processes of their own: the caller never returns.

Coverage does not see most of it: a function that forks is not followed into the child.
"""

import os
import signal
import subprocess
import sys

import pytest

BEGIN = 'import os, sys\nfrom metadata_wsgi.namespace_proxy import daemonize\nready = daemonize.daemonize()\n'


@pytest.fixture
def call():
    """The exit code that the caller of ``daemonize`` has, when the daemon goes on with ``script``."""

    def run(script, *arguments):
        argv = [sys.executable, '-c', BEGIN + script, *map(str, arguments)]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode

    return run


def test_the_caller_returns_when_the_daemon_is_ready_and_not_before(call, tmp_path):
    """What was done before ``ready`` is done when the caller has returned."""
    script = 'import time\ntime.sleep(0.3)\nopen(sys.argv[1], "w").write("done")\nready()\n'
    assert call(script, tmp_path / 'done') == 0
    assert (tmp_path / 'done').read_text() == 'done'


@pytest.mark.parametrize('script', ['sys.exit(0)', 'sys.exit(3)', 'os.kill(os.getpid(), 9)'])
def test_a_daemon_that_ends_before_it_is_ready_is_a_failure(call, script):
    assert call(script) == 1


def test_the_daemon_has_left_the_callers_terminal_and_directory(call, tmp_path):
    script = (
        'found = [os.getcwd(), os.getsid(0) != os.getsid(int(sys.argv[2])), os.getsid(0) != os.getpid(), os.umask(0)]\n'
        'with open(sys.argv[1], "w") as out: out.write(repr(found))\n'
        'ready()\n'
    )
    assert call(script, tmp_path / 'found', os.getpid()) == 0
    assert (tmp_path / 'found').read_text() == repr(['/', True, True, 0o022])


def test_a_ready_daemon_holds_no_stream_of_the_callers(tmp_path):
    """Whoever reads the caller's output to its end would wait for the daemon's."""
    script = (
        'import time\nopen(sys.argv[1], "w").write(str(os.getpid()))\nready()\n'
        'print("unheard", flush=True)\ntime.sleep(60)\n'
    )
    argv = [sys.executable, '-c', BEGIN + script, str(tmp_path / 'pid')]
    try:
        caller = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    finally:
        os.kill(int((tmp_path / 'pid').read_text()), signal.SIGKILL)
    assert (caller.returncode, caller.stdout, caller.stderr) == (0, '', '')
