# SPDX-License-Identifier: Apache-2.0
"""The holders on this host: small processes that keep a copy of a router's or network's listening sockets.

A Neutron agent needs a process with a pid file for each metadata proxy. ``metadata-wsgi-haproxy`` leaves a holder as
that process. Where systemd does not store the keeper's sockets, as in containers, the holders are the copy that
outlives a keeper and workers that end together.

``<state_path>/holders/<id>`` is a FIFO that the holder with that id reads. A line ``again`` makes it send its sockets
to the keeper; any other line ends it.

The state path may belong to an unprivileged user: the directory is opened without following a link and must be
root's alone, and nothing in it is followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Collection

REQUEST_INTERVAL_S = 2.0
"""Time between two requests to holders whose sockets are not registered. Workers send theirs before the first."""
BATCH = 32
"""Request the sockets of at most this many holders at a time: each holder starts a program."""


class Holders:
    """The holders of one state path."""

    def __init__(self, state_path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = os.path.join(state_path, 'holders')
        self._clock = clock
        self._next_request_at = clock() + REQUEST_INTERVAL_S

    def ids(self) -> list[str]:
        """The routers and networks that have a holder, according to the FIFOs."""
        directory = self._open()
        if directory is None:
            return []
        try:
            return sorted(os.listdir(directory))
        finally:
            os.close(directory)

    def request_sockets(self, registered: Callable[[], Collection[str]]) -> list[str]:
        """Request the sockets of holders whose id is not in ``registered()``, once in ``REQUEST_INTERVAL_S``.

        Return the ids of these holders.
        """
        if self._clock() < self._next_request_at:
            return []
        self._next_request_at = self._clock() + REQUEST_INTERVAL_S
        ids = self.ids()
        known = registered() if ids else ()
        missing = [id_ for id_ in ids if id_ not in known][:BATCH]
        return [id_ for id_ in missing if self._write(id_, b'again\n')]

    def end(self, id_: str) -> None:
        """End the holder of ``id_``: a copy of a socket would keep a deleted namespace in the kernel."""
        self._write(id_, b'end\n')

    def _open(self) -> int | None:
        try:
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            os.close(directory)
            return None
        return directory

    def _write(self, id_: str, line: bytes) -> bool:
        """Whether a holder got the line. The FIFO of a holder that was killed is removed."""
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
            return False
        finally:
            os.close(directory)
