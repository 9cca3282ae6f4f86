# SPDX-License-Identifier: Apache-2.0
"""Opens files as root in directories in which less privileged users may create files.

A worker may be able to write to the state directory. It could create a symbolic link to one of root's files, a FIFO
that blocks open(), a hard link, or a file that another user can change. These functions open only files that root or
the calling user created. Otherwise they raise PermissionError with the reason.

Facts: open(2) with O_PATH and O_NOFOLLOW opens a symbolic link itself, not its target. The functions check this
descriptor and then use it, because a path could be replaced between check and use. The kernel's
``fs.protected_symlinks`` is not enough: it applies only to directories with the sticky bit in which every user may
write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import deque

MAX_SYMLINKS = 40


def open_directory(path: str, *, make: bool = False) -> int:
    """Open the directory ``path``, for use as ``dir_fd``. With ``make``, create missing directories with mode 0755.

    Symbolic links are followed only if root or the calling user created them. If other users may write to a directory
    of the path, the directory below it must have the same owner, or belong to root or to the calling user.
    """
    pending = deque(os.path.abspath(path).split('/'))
    symlinks = 0
    current = os.open('/', os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while pending:
            name = pending.popleft()
            if name in ('', '.'):
                continue
            made = False
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=current)
                    made = True
            entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            try:
                found, parent = os.fstat(entry), os.fstat(current)
                if stat.S_ISLNK(found.st_mode):
                    symlinks += 1
                    if symlinks > MAX_SYMLINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    if found.st_uid not in _trusted_uids():
                        raise PermissionError(errno.EPERM, f'{name} is a symbolic link of uid {found.st_uid}')
                    target = os.readlink('', dir_fd=entry)
                    pending.extendleft(reversed(target.split('/')))
                    if not target.startswith('/'):
                        continue
                    entry, replaced = os.open('/', os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), entry
                    os.close(replaced)
                elif not stat.S_ISDIR(found.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                elif parent.st_mode & 0o022 and found.st_uid not in (*_trusted_uids(), parent.st_uid):
                    raise PermissionError(
                        errno.EPERM,
                        f'the directory {name} belongs to uid {found.st_uid}, and several users may write to the '
                        'directory above it; if this is intended, chown it to root',
                    )
                if made and found.st_uid == os.geteuid():
                    # Independent of the umask, because workers have another user and must be able to pass through.
                    os.chmod(f'/proc/self/fd/{entry}', 0o755)  # noqa: S103 (search, not write)
                current, entry = entry, current
            finally:
                os.close(entry)
    except BaseException:
        os.close(current)
        raise
    return current


def open_file(name: str, flags: int, *, dir_fd: int, mode: int = 0o600) -> int:
    """Open the regular file ``name`` in the directory ``dir_fd``. ``flags`` and ``mode`` are those of open(2).

    The file must belong to root or to the calling user and have only one link. Group and others must not be able to
    write to it. Otherwise raises PermissionError.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags & ~os.O_TRUNC, mode, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise PermissionError(errno.EPERM, f'{name} is not a regular file') from None
        if error.errno == errno.EACCES:
            raise PermissionError(errno.EACCES, f'{name} may not be opened by uid {os.geteuid()}') from None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(errno.EPERM, f'{name} is not a regular file')
        if found.st_uid not in _trusted_uids():
            raise PermissionError(errno.EPERM, f'{name} belongs to uid {found.st_uid}')
        if found.st_nlink > 1 or found.st_mode & 0o022:
            raise PermissionError(errno.EPERM, f'other users may change {name}')
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_locked(name: str, *, dir_fd: int, mode: int = 0o600) -> int:
    """Create or open the file ``name`` and lock it (flock). The descriptor holds the lock until it is closed.

    Raises BlockingIOError if another process has the lock. If the file was deleted before it was locked, it is opened
    and locked again: a lock on a deleted file would not exclude a process that opens the name later.
    """
    while True:
        fd = open_file(name, os.O_CREAT | os.O_RDWR, dir_fd=dir_fd, mode=mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_name_of(fd, name, dir_fd=dir_fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_name_of(fd: int, name: str, *, dir_fd: int) -> bool:
    """Whether ``name`` in the directory ``dir_fd`` is still the file of the descriptor ``fd``."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def _trusted_uids() -> tuple[int, ...]:
    """The uids of root, of the calling user, and of the owner of ``/``, who is the host's root in a user namespace."""
    return (0, os.geteuid(), os.stat('/').st_uid)
