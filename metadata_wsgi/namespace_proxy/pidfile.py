# SPDX-License-Identifier: Apache-2.0
"""The pid file of a namespace proxy: ensures that a router has only one proxy, and contains the pid for signals.

A running proxy holds a lock (flock) on the file. When the process ends, even if it is killed, the kernel releases the
lock. So the next proxy can use the file of a killed one. Root writes the file in a directory in which unprivileged
workers may create files. So ``safe_files`` opens the file and follows no link.
"""

from __future__ import annotations

import os

from metadata_wsgi import safe_files
from metadata_wsgi.errors import NetnsError


class PidFile:
    """A pid file that is locked while the object exists. ``write`` writes the pid. ``remove`` deletes the file.

    The constructor raises NetnsError if another process holds the lock, or if the file cannot be opened safely. The
    directory is kept open, so ``remove`` works even after a change of the working directory or the mounts.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._name = os.path.basename(self.path)
        self._owner = 0
        try:
            self._directory = safe_files.open_directory(os.path.dirname(self.path), make=True)
        except OSError as error:
            raise NetnsError(f'pid_file {path}: {error.strerror}') from error
        try:
            self._fd = safe_files.open_locked(self._name, dir_fd=self._directory, mode=0o644)
        except BlockingIOError:
            pid = self._read_pid() or 'unknown'
            os.close(self._directory)
            raise NetnsError(f'already running with pid {pid} (pid file {path})') from None
        except OSError as error:
            os.close(self._directory)
            raise NetnsError(f'pid_file {path}: {error.strerror}') from error

    def write(self) -> None:
        """Write the pid of the calling process. Call this method after the process has become a daemon."""
        self._owner = os.getpid()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b'%d\n' % self._owner, 0)
        os.fsync(self._fd)

    def close_in_child(self) -> None:
        """Close the file in a forked child. Otherwise the child would hold the lock after the end of its parent."""
        os.close(self._fd)
        os.close(self._directory)

    def remove(self) -> None:
        """Delete the file, then unlock it.

        Does nothing in a worker: a worker is a fork of the master, and also leaves through the caller's ``finally``
        block. If another process has replaced the file, the new file is not deleted.
        """
        if os.getpid() != self._owner:
            return
        if safe_files.is_name_of(self._fd, self._name, dir_fd=self._directory):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._fd)
        os.close(self._directory)

    def _read_pid(self) -> str:
        try:
            fd = safe_files.open_file(self._name, os.O_RDONLY, dir_fd=self._directory)
        except OSError:
            return ''
        try:
            return os.pread(fd, 32, 0).decode('ascii', 'replace').strip()
        finally:
            os.close(fd)
