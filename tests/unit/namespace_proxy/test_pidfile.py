# SPDX-License-Identifier: Apache-2.0
import os
import pathlib

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.namespace_proxy.pidfile import PidFile


def in_a_child(action):
    """Run ``action`` in a forked child and wait for it."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'external' / 'pids' / 'r1.pid')


def test_pid_file_has_the_pid_until_it_is_removed(path):
    pid_file = PidFile(path)
    pid_file.write()
    assert pathlib.Path(path).read_text() == f'{os.getpid()}\n'
    pid_file.remove()
    assert not os.path.exists(path)


def test_pid_file_that_is_locked_is_refused_with_the_other_pid(path):
    first = PidFile(path)
    first.write()
    with pytest.raises(NetnsError) as raised:
        PidFile(path)
    assert str(raised.value) == f'already running with pid {os.getpid()} (pid file {path})'
    first.remove()


def test_pid_file_of_a_dead_process_is_reused(path):
    """Also if its content was longer."""
    in_a_child(lambda: PidFile(path).write())
    pathlib.Path(path).write_text('12345678\n' * 3)
    pid_file = PidFile(path)
    pid_file.write()
    assert pathlib.Path(path).read_text() == f'{os.getpid()}\n'
    pid_file.remove()


def test_pid_file_is_not_removed_by_a_worker(path):
    """A gunicorn worker ends through the same ``finally`` as its master."""
    pid_file = PidFile(path)
    pid_file.write()

    def worker():
        pid_file.close_in_child()
        pid_file.remove()

    in_a_child(worker)
    assert pathlib.Path(path).read_text() == f'{os.getpid()}\n'
    with pytest.raises(NetnsError, match='already running'):
        PidFile(path)
    pid_file.remove()


def test_pid_file_path_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(NetnsError, match=r'^pid_file .*/file/r1\.pid: '):
        PidFile(str(tmp_path / 'file' / 'r1.pid'))
