# SPDX-License-Identifier: Apache-2.0
import fcntl
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


@pytest.mark.parametrize('kind', ['symlink', 'dangling symlink', 'fifo'])
def test_pid_file_does_not_follow_what_a_worker_prepared(tmp_path, kind):
    """Root would truncate the target of a symlink and write a pid into it; a FIFO must not block."""
    precious, path = tmp_path / 'precious', tmp_path / 'r1.pid'
    if kind != 'dangling symlink':
        precious.write_text('data')
    if kind == 'fifo':
        os.mkfifo(path)
    else:
        path.symlink_to(precious)
    with pytest.raises(NetnsError, match=r'^pid_file .*r1\.pid: r1\.pid is not a regular file$'):
        PidFile(str(path)).write()
    assert not precious.exists() or precious.read_text() == 'data'


@pytest.mark.skipif(os.geteuid() != 0, reason='makes files of another user: run it as root')
@pytest.mark.parametrize('name', ['external', 'external/pids', 'external/pids/r1.pid'])
def test_pid_file_refuses_names_that_a_worker_made_in_a_shared_directory(tmp_path, name):
    """The state directory is writable for the workers' group; whatever they make there is theirs."""
    tmp_path.chmod(0o1775)
    (tmp_path / 'precious').mkdir()
    path = tmp_path / 'external' / 'pids' / 'r1.pid'
    path.parent.mkdir(parents=True)
    made = tmp_path / name
    if made == path:
        made.write_text('1')
    elif made == path.parent:
        made.rmdir()
        made.symlink_to(tmp_path / 'precious')
    os.chown(made, 12345, 12345, follow_symlinks=False)
    with pytest.raises(NetnsError, match='uid 12345'):
        PidFile(str(path))
    assert os.listdir(tmp_path / 'precious') == []


def test_pid_file_with_a_relative_path_is_removed_after_chdir(tmp_path, monkeypatch):
    """A daemon changes its working directory."""
    monkeypatch.chdir(tmp_path)
    pid_file = PidFile('r1.pid')
    monkeypatch.chdir('/')
    pid_file.write()
    assert (tmp_path / 'r1.pid').read_text() == f'{os.getpid()}\n'
    pid_file.remove()
    assert not (tmp_path / 'r1.pid').exists()


def test_pid_file_lock_is_not_taken_on_a_removed_file(tmp_path, monkeypatch):
    """The former proxy removes its file between the open() and the flock() of the next one."""
    path = tmp_path / 'r1.pid'
    former = PidFile(str(path))
    former.write()
    flock = fcntl.flock

    def former_ends_first(fd, operation):
        if path.exists() and former is not None:
            former.remove()
            monkeypatch.setattr(fcntl, 'flock', flock)
        return flock(fd, operation)

    monkeypatch.setattr(fcntl, 'flock', former_ends_first)
    second = PidFile(str(path))
    with pytest.raises(NetnsError, match='already running'):
        PidFile(str(path))
    second.write()
    assert path.read_text() == f'{os.getpid()}\n'
    second.remove()


def test_pid_file_of_a_successor_is_not_removed(tmp_path):
    """Somebody deleted the file of a running proxy, and another one was started."""
    path = tmp_path / 'r1.pid'
    first = PidFile(str(path))
    first.write()
    path.unlink()
    second = PidFile(str(path))
    second.write()
    first.remove()
    assert path.exists()
    second.remove()
    assert not path.exists()
