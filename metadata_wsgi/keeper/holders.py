# SPDX-License-Identifier: Apache-2.0
"""The holders on this host: small processes, each with copies of the listening sockets of one router or network.

A Neutron agent expects a process with a pid file for each of its metadata proxies. ``metadata-wsgi-haproxy`` starts a
holder as that process. In containers systemd does not store the keeper's sockets. If keeper and workers end at the same
time in a container, only the holders still have the sockets.

A holder reads the FIFO ``<state_path>/holders/<id>``; the id is that of its router or network. The line ``again`` makes
the holder send its sockets to the keeper. Any other line ends the holder.

The state path may belong to an unprivileged user. So the keeper follows no symbolic link to the directory ``holders``
or in it. The directory is ignored unless the keeper's user owns it and nobody else may write to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Collection

from metadata_wsgi.errors import EXHAUSTED

REQUEST_INTERVAL_S = 2.0
"""Time between two rounds of requests to holders, and between the keeper's start and the first round. Workers send
their sockets before the first round, so a holder gets a request only if no worker has its sockets."""
MAX_REQUEST_INTERVAL_S = 30.0
"""The time between two requests to one holder starts at ``REQUEST_INTERVAL_S``, and doubles up to this after each
request without a result."""
BATCH = 32
"""Largest number of holders that get a request in one round. Each of these holders starts a program."""


class Holders:
    """The holders of one state path. Each method raises OSError if descriptors or memory are exhausted."""

    def __init__(self, state_path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = os.path.join(state_path, 'holders')
        self._clock = clock
        self._next_request_at = clock() + REQUEST_INTERVAL_S
        # By id: when the holder gets its next request, and the interval after that request.
        self._due: dict[str, tuple[float, float]] = {}

    def ids(self) -> list[str]:
        """The ids of the routers and networks for which a holder's FIFO exists."""
        directory = self._open()
        if directory is None:
            return []
        try:
            return sorted(os.listdir(directory))
        finally:
            os.close(directory)

    def request_sockets(self, registered: Callable[[], Collection[str]]) -> list[str]:
        """Send ``again`` to up to BATCH holders whose id is not in ``registered()``. Return their ids.

        The keeper calls this often. Calls within ``REQUEST_INTERVAL_S`` after a round do nothing and return [].
        """
        now = self._clock()
        if now < self._next_request_at:
            return []
        self._next_request_at = now + REQUEST_INTERVAL_S
        ids = self.ids()
        known = registered() if ids else ()
        self._due = {id_: self._due.get(id_, (0.0, REQUEST_INTERVAL_S)) for id_ in ids if id_ not in known}
        # The longest overdue first, so that holders that never send their sockets do not keep others from a request.
        due = sorted((id_ for id_, (at, _) in self._due.items() if at <= now), key=lambda id_: self._due[id_][0])[
            :BATCH
        ]
        for id_ in due:
            interval = self._due[id_][1]
            self._due[id_] = now + interval, min(2 * interval, MAX_REQUEST_INTERVAL_S)
        return [id_ for id_ in due if self._write(id_, b'again\n')]

    def end(self, id_: str) -> None:
        """End the holder of ``id_``. Its sockets would keep a deleted namespace in the kernel."""
        self._write(id_, b'end\n')

    def is_replaced(self, id_: str, inode: object) -> bool:
        """Whether the FIFO of ``id_`` is another one than the FIFO ``inode``: a newer holder has made it.

        False if ``inode`` is None, or if there is no FIFO.
        """
        directory = None if inode is None or '/' in id_ else self._open()
        if directory is None:
            return False
        try:
            return os.stat(id_, dir_fd=directory, follow_symlinks=False).st_ino != inode
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise
            return False
        finally:
            os.close(directory)

    def _open(self) -> int | None:
        try:
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise
            return None
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            os.close(directory)
            return None
        return directory

    def _write(self, id_: str, line: bytes) -> bool:
        """Write ``line`` to the FIFO of a holder. Returns whether a holder reads it.

        If no process has the FIFO open, the holder was killed, and the FIFO is removed.
        """
        directory = None if '/' in id_ else self._open()
        if directory is None:
            return False
        try:
            fifo = os.open(id_, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if not stat.S_ISFIFO(os.fstat(fifo).st_mode):
                    return False
                return os.write(fifo, line) == len(line)
            finally:
                os.close(fifo)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no process reads it
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(id_, dir_fd=directory)
            if error.errno in EXHAUSTED:
                raise
            return False
        finally:
            os.close(directory)
