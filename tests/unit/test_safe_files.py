# SPDX-License-Identifier: Apache-2.0
"""Names that a less privileged user made are not followed."""

import fcntl
import os
import stat

import pytest

from metadata_wsgi import safe_files

OTHER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason='makes files of another user: run it as root')


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def directory(tmp_path):
    fd = safe_files.open_directory(str(tmp_path))
    yield fd
    os.close(fd)


def test_open_directory_makes_missing_directories(tmp_path):
    fd = safe_files.open_directory(str(tmp_path / 'a' / 'b'), make=True)
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / 'a' / 'b'))
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        safe_files.open_directory(str(tmp_path / 'c'))


def test_open_directory_makes_directories_that_workers_may_search_whatever_the_umask(tmp_path):
    """They are another user, who must reach the agent's socket."""
    before = os.umask(0o077)
    try:
        os.close(safe_files.open_directory(str(tmp_path / 'a' / 'b'), make=True))
    finally:
        os.umask(before)
    assert (mode(tmp_path / 'a'), mode(tmp_path / 'a' / 'b')) == (0o755, 0o755)


@pytest.mark.parametrize('target', ['{}/real', 'real', '../{1}/real', './real/', '{}/other-link'])
def test_open_directory_follows_symlinks_of_root_and_the_caller(tmp_path, target):
    (tmp_path / 'real' / 'sub').mkdir(parents=True)
    (tmp_path / 'other-link').symlink_to('real')
    (tmp_path / 'link').symlink_to(target.format(tmp_path, tmp_path.name))
    fd = safe_files.open_directory(str(tmp_path / 'link' / 'sub'))
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / 'real' / 'sub'))
    os.close(fd)


def test_open_directory_ends_a_symlink_loop(tmp_path):
    (tmp_path / 'link').symlink_to('link')
    with pytest.raises(OSError, match='Too many levels'):
        safe_files.open_directory(str(tmp_path / 'link'))


@as_root
def test_open_directory_does_not_follow_a_symlink_of_another_user(tmp_path):
    (tmp_path / 'precious').mkdir()
    (tmp_path / 'link').symlink_to('precious')
    os.chown(tmp_path / 'link', OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(PermissionError, match='link is a symbolic link of uid 12345'):
        safe_files.open_directory(str(tmp_path / 'link' / 'new'), make=True)
    assert os.listdir(tmp_path / 'precious') == []


@as_root
def test_open_directory_refuses_another_users_directory_where_others_may_write(tmp_path):
    (tmp_path / 'external').mkdir()
    os.chown(tmp_path / 'external', OTHER, OTHER)
    os.close(safe_files.open_directory(str(tmp_path / 'external')))
    tmp_path.chmod(0o1775)
    with pytest.raises(PermissionError, match='the directory external belongs to uid 12345'):
        safe_files.open_directory(str(tmp_path / 'external'))
    # A state directory of another user: what its owner made in it is no surprise.
    os.chown(tmp_path, OTHER, OTHER)
    os.close(safe_files.open_directory(str(tmp_path / 'external')))


def test_open_file_truncates_only_on_request(tmp_path, directory):
    (tmp_path / 'file').write_text('data')
    (tmp_path / 'file').chmod(0o644)
    os.close(safe_files.open_file('file', os.O_RDWR, dir_fd=directory))
    assert (tmp_path / 'file').read_text() == 'data'
    os.close(safe_files.open_file('file', os.O_RDWR | os.O_TRUNC, dir_fd=directory))
    assert (tmp_path / 'file').read_text() == ''


@pytest.mark.parametrize('flags', [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_CREAT])
@pytest.mark.parametrize('kind', ['symlink', 'fifo', 'hard link', 'writable', 'directory', 'socket'])
def test_open_file_refuses_what_another_user_may_have_prepared(tmp_path, directory, kind, flags):
    """A FIFO must not block either."""
    precious = tmp_path / 'precious'
    precious.write_text('data')
    precious.chmod(0o600)
    file = tmp_path / 'file'
    if kind == 'symlink':
        file.symlink_to(precious)
    elif kind == 'fifo':
        os.mkfifo(file)
    elif kind == 'hard link':
        file.hardlink_to(precious)
    elif kind == 'writable':
        file.touch()
        file.chmod(0o666)
    elif kind == 'directory':
        file.mkdir()
    else:
        os.mknod(file, stat.S_IFSOCK | 0o600)
    with pytest.raises((PermissionError, IsADirectoryError)):
        safe_files.open_file('file', flags, dir_fd=directory)
    assert precious.read_text() == 'data'


@as_root
def test_open_file_refuses_a_file_of_another_user(tmp_path, directory):
    (tmp_path / 'file').write_text('data')
    os.chown(tmp_path / 'file', OTHER, OTHER)
    with pytest.raises(PermissionError, match='file belongs to uid 12345'):
        safe_files.open_file('file', os.O_RDWR | os.O_CREAT, dir_fd=directory)


def test_open_locked_excludes_a_second_one(tmp_path, directory):
    first = safe_files.open_locked('lock', dir_fd=directory)
    assert mode(tmp_path / 'lock') == 0o600
    with pytest.raises(BlockingIOError):
        safe_files.open_locked('lock', dir_fd=directory)
    os.close(first)
    os.close(safe_files.open_locked('lock', dir_fd=directory))


def test_open_locked_does_not_return_a_lock_on_a_removed_file(tmp_path, directory, monkeypatch):
    """The former holder removes the file between our open() and our flock()."""
    (tmp_path / 'lock').touch(0o600)
    flock = fcntl.flock
    removed = []

    def remove_first(fd, operation):
        if not removed:
            removed.append(os.unlink(tmp_path / 'lock'))
        return flock(fd, operation)

    monkeypatch.setattr(fcntl, 'flock', remove_first)
    fd = safe_files.open_locked('lock', dir_fd=directory)
    assert removed
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / 'lock'))
    os.close(fd)
