# SPDX-License-Identifier: Apache-2.0
"""Neutron's lock on the iptables rules of a namespace.

A Neutron agent on the same host reads the rules of a namespace, changes them and writes them back. This package does
the same. The lock prevents that both do so at the same time.

Facts:

- While Neutron's IptablesManager changes rules, it holds the external lock ``neutron-iptables-<namespace>`` of
  oslo.concurrency (neutron 29, agent/linux/iptables_manager.py; the prefix is SYNCHRONIZED_PREFIX of neutron-lib).
- An external lock is a file of this name in ``[oslo_concurrency] lock_path``. oslo locks the file with fcntl(2)
  (fasteners, process_mechanism.py). A lock of flock(2) would have no effect on a lock of fcntl(2).
- oslo opens the file for writing, as the agent's user. So if root creates the file here, the file gets the owner of
  the directory.
- A lock of fcntl(2) belongs to the process, and ends when the process closes any descriptor of the file. So two threads
  must not use the lock of the same namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from oslo_config import cfg

from metadata_wsgi.errors import NetnsError

GROUP = 'oslo_concurrency'
OPTS = [cfg.StrOpt('lock_path', default='', help="Directory of Neutron's external locks, as in neutron.conf.")]

TIMEOUT_S = 30.0
POLL_S = 0.02


class NeutronIptablesLock:
    """The locks of the namespaces, in the directory ``lock_path``. If ``lock_path`` is '', no lock is used."""

    def __init__(
        self,
        lock_path: str,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lock_path = lock_path
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep

    @contextmanager
    def __call__(self, namespace: str) -> Iterator[None]:
        """Hold the lock of ``namespace``. NetnsError if the file cannot be opened, or the lock is not free in time."""
        if not self._lock_path:
            yield
            return
        path = os.path.join(self._lock_path, f'neutron-iptables-{namespace}')
        try:
            fd = _open(self._lock_path, os.path.basename(path))
        except OSError as error:
            raise NetnsError(f"Neutron's lock {path}: {error.strerror}") from error
        try:
            self._acquire(fd, path)
            yield
        finally:
            os.close(fd)

    def _acquire(self, fd: int, path: str) -> None:
        deadline_s = self._clock() + self._timeout_s
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise NetnsError(f"Neutron's lock {path}: {error.strerror}") from error
            else:
                return
            if self._clock() >= deadline_s:
                raise NetnsError(f"Neutron's lock {path} is still held by another process after {self._timeout_s:g} s")
            self._sleep(POLL_S)


def _open(directory: str, name: str) -> int:
    """Open or create the lock file. A new file gets the owner of the directory."""
    dir_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=dir_fd)
        except FileExistsError:
            return os.open(name, flags, dir_fd=dir_fd)
        owner = os.stat(dir_fd)
        os.fchown(fd, owner.st_uid, owner.st_gid)
        return fd
    finally:
        os.close(dir_fd)
