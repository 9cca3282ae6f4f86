# SPDX-License-Identifier: Apache-2.0
import os
import sys

import pytest

from metadata_wsgi import limits
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import runner
from metadata_wsgi.netns.runner import SubprocessRunner, search_path


def python(code, **kwargs):
    return SubprocessRunner(timeout_s=20)([sys.executable, '-c', code], **kwargs)


def test_stdin_and_stdout():
    assert python('print(input()[::-1])', stdin='abc') == 'cba\n'


def test_error_has_exit_code_and_stderr_of_the_program():
    with pytest.raises(NetnsError, match='exit code 3: table is locked'):
        python('import sys; print("table\\nis locked", file=sys.stderr); sys.exit(3)')


def test_missing_program_is_named():
    with pytest.raises(NetnsError, match=r'no-such-program --flag: No such file'):
        SubprocessRunner()(['no-such-program', '--flag'])


def test_program_is_killed_after_the_timeout():
    with pytest.raises(NetnsError, match=r'not finished after 0\.2 s'):
        SubprocessRunner(timeout_s=0.2)([sys.executable, '-c', 'input() if 0 else __import__("time").sleep(60)'])


def test_default_timeout_is_longer_than_the_retry_of_a_port_in_use():
    """Otherwise the program is killed before it reports which process has the port."""
    assert runner.TIMEOUT_S > limits.PORT_IN_USE_TIMEOUT_S


def test_daemon_that_keeps_stdout_open_does_not_block_the_caller():
    """A pipe would be read until the daemon ends, which is after the timeout here."""
    code = 'import os, time; os.fork() or (time.sleep(15), os._exit(0)); print("up")'
    assert SubprocessRunner(timeout_s=10)([sys.executable, '-c', code]) == 'up\n'


def test_search_path_includes_sbin():
    assert '/usr/sbin' in search_path().split(':')


def test_descriptor_is_inherited_under_its_number():
    reading, writing = os.pipe()
    try:
        python(f'import os; os.write({writing}, b"x")', pass_fds=[writing])
        assert os.read(reading, 1) == b'x'
        with pytest.raises(NetnsError, match='Bad file descriptor'):
            python(f'import os; os.write({writing}, b"x")')
    finally:
        os.close(reading)
        os.close(writing)
