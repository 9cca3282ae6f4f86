# SPDX-License-Identifier: Apache-2.0
"""Waits for the next change of /run/netns, with inotify(7).

An event only ends the wait. Then the caller lists the directory. So a lost event only delays the next listing.
"""

from __future__ import annotations

import os
import select
import types
from contextlib import suppress

from inotify_simple import INotify, flags

from metadata_wsgi.netns import namespaces


class NamespaceEvents:
    """Context manager for the events of ``directory``, from ``__enter__`` on.

    Without inotify, ``wait`` always waits for its timeout.
    """

    def __init__(self, directory: str = namespaces.DIRECTORY) -> None:
        self._directory = directory
        self._inotify: INotify | None = None
        self._watched: int | None = None
        """inotify's number of the directory that is watched."""
        self._wake_writer: int | None
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> NamespaceEvents:
        # The user's limit of inotify instances may be reached.
        with suppress(OSError):
            self._inotify = INotify(nonblocking=True)
            self._watch(self._inotify)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if self._inotify:
            self._inotify.close()
        # Reset before the closes: a signal handler may call ``wake`` at any time.
        writer, self._wake_writer = self._wake_writer, None
        if writer is not None:
            os.close(writer)
        os.close(self._wake_reader)

    def wake(self) -> None:
        """End the ``wait`` in progress, or else the next one. Does nothing after ``__exit__``.

        A signal handler may call this method.
        """
        if self._wake_writer is not None:
            with suppress(BlockingIOError):
                os.write(self._wake_writer, b'\0')

    def wait(self, timeout_s: float, also: int | None = None) -> None:
        """Return when a name was added or removed since the last call, after ``wake``, or after ``timeout_s``.

        Also return when the descriptor ``also`` is readable, and when the directory is new: it may have changed before
        it was watched.
        """
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        if also is not None:
            poll.register(also, select.POLLIN)
        if self._inotify:
            if self._watch(self._inotify):
                timeout_s = 0.0
            poll.register(self._inotify.fileno(), select.POLLIN)
        poll.poll(timeout_s * 1000)
        if self._inotify:
            self._inotify.read(timeout=0)
        with suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    def _watch(self, inotify: INotify) -> bool:
        """Watch the directory. Returns whether it was not watched before."""
        # At each ``wait``, because ``ip netns`` creates the directory at its first use, and the directory may be
        # mounted again later. A second watch of the same directory has no effect.
        former, self._watched = self._watched, None
        with suppress(OSError):
            mask = flags.CREATE | flags.DELETE | flags.MOVED_TO | flags.MOVED_FROM
            self._watched = inotify.add_watch(self._directory, mask)
        return self._watched is not None and self._watched != former
