# SPDX-License-Identifier: Apache-2.0
"""The pid file of a namespace proxy: it ensures one proxy per router, and has the pid to send a signal to.

While the proxy runs it holds a lock (flock) on the file. The kernel releases the lock when the process ends, however
it ends, so the file of a killed proxy can be reused.
"""

from __future__ import annotations

import fcntl
import os

from metadata_wsgi.errors import NetnsError


class PidFile:
    """Locked on construction. ``write`` writes the pid; ``remove`` deletes and unlocks the file.

    Raises NetnsError with the other pid if another process holds the lock.
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
        """Write the pid of the calling process; called after it became a daemon."""
        self._owner = os.getpid()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b'%d\n' % self._owner, 0)
        os.fsync(self._fd)

    def close_in_child(self) -> None:
        """Close the file in a forked child, so that the lock ends with the parent."""
        os.close(self._fd)

    def remove(self) -> None:
        """Delete the file, then unlock it. Does nothing in a worker, which ends through the same ``finally``."""
        if os.getpid() != self._owner:
            return
        if os.path.exists(self.path):
            os.unlink(self.path)
        os.close(self._fd)
