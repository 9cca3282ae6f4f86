# SPDX-License-Identifier: Apache-2.0
"""The pid file of a namespace proxy: one proxy per router, and its pid for whoever must end it.

The lock tells whether one runs, the number in the file which. A lock ends with its process however
that ends, so a file that a SIGKILL left behind is simply taken over.
"""

from __future__ import annotations

import fcntl
import os

from metadata_wsgi.errors import NetnsError


class PidFile:
    """Locked from construction on; ``write`` puts the pid in; ``remove`` ends both, in the process that wrote.

    Raises NetnsError when another process holds the lock, with its pid.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._owner = 0
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o755, exist_ok=True)
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise NetnsError(f'pid_file {path}: {error.strerror}') from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(self._fd, 32, 0).decode('ascii', 'replace').strip() or 'unknown'
            os.close(self._fd)
            raise NetnsError(f'already running with pid {pid} (pid file {path})') from None

    def write(self) -> None:
        """Put the calling process's pid into the file; called after daemonising."""
        self._owner = os.getpid()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b'%d\n' % self._owner, 0)
        os.fsync(self._fd)

    def forget(self) -> None:
        """For a forked child: give the lock up there, so that it ends with the parent."""
        os.close(self._fd)

    def remove(self) -> None:
        """Remove the file, then let the lock go. Nothing happens in a worker, which leaves by the same way."""
        if os.getpid() != self._owner:
            return
        if os.path.exists(self.path):
            os.unlink(self.path)
        os.close(self._fd)
