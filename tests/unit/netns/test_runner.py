# SPDX-License-Identifier: Apache-2.0
import os
import sys

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns.runner import SubprocessRunner, search_path


def python(code, **kwargs):
    return SubprocessRunner(timeout_s=20)([sys.executable, '-c', code], **kwargs)


def test_input_goes_in_and_output_comes_out():
    assert python('print(input()[::-1])', stdin='abc') == 'cba\n'


def test_a_failure_has_the_programs_own_words():
    with pytest.raises(NetnsError, match='exit code 3: table is locked'):
        python('import sys; print("table\\nis locked", file=sys.stderr); sys.exit(3)')


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(NetnsError, match=r'no-such-program --flag: No such file'):
        SubprocessRunner()(['no-such-program', '--flag'])


def test_a_program_that_hangs_is_given_up():
    with pytest.raises(NetnsError, match=r'no end after 0\.2 s'):
        SubprocessRunner(timeout_s=0.2)([sys.executable, '-c', 'input() if 0 else __import__("time").sleep(60)'])


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_caller():
    """A pipe would be read until the daemon ends; it ends here only after the caller had to give up."""
    code = 'import os, time; os.fork() or (time.sleep(15), os._exit(0)); print("up")'
    assert SubprocessRunner(timeout_s=10)([sys.executable, '-c', code]) == 'up\n'


def test_system_programs_are_found_without_sbin_on_the_path():
    assert '/usr/sbin' in search_path().split(':')


def test_a_descriptor_is_inherited_under_its_number():
    reading, writing = os.pipe()
    try:
        python(f'import os; os.write({writing}, b"x")', hand=[writing])
        assert os.read(reading, 1) == b'x'
        with pytest.raises(NetnsError, match='Bad file descriptor'):
            python(f'import os; os.write({writing}, b"x")')
    finally:
        os.close(reading)
        os.close(writing)
