# SPDX-License-Identifier: Apache-2.0
"""Reads the inventory again when its file has changed. If the new file is invalid, the old inventory stays in use.

To change the inventory, write a complete new file and rename it to the name of the old file. Then no process reads a
half-written file. A change is detected by modification time, size or inode. The file is checked at the first call that
is at least ``interval_s`` after the last check.

A file of 16 MiB takes seconds to read. So it is read in a thread of the operating system, and other requests are served
meanwhile. A request waits up to ``MAX_WAIT_S`` for the new inventory and then uses the old one. ``is_reloading`` is
True until the new inventory is in use. Until then an instance may be missing only because the inventory is old.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.inventory.model import Inventory
from metadata_wsgi.inventory.parse import contents, parse

LOG = logging.getLogger(__name__)

MAX_WAIT_S = 0.5
POLL_INTERVAL_S = 0.005

Version = tuple[int, int, int] | None
"""Modification time (ns), size and inode of a file; None if there is no file."""
Read = Callable[[str], tuple[Version, Inventory]]
"""Reads the file at a path; raises ConfigError."""


@dataclass(frozen=True, slots=True)
class _State:
    """The inventory in use, the version of the last file read (valid or not), and the time of the last check."""

    inventory: Inventory
    version: Version
    checked_at_s: float


class _Reload:
    """Reads the file once, in a thread. When ``is_done`` is True, either ``inventory`` or ``error`` is set.

    The thread takes no lock and writes no log: under gevent, locks and log handlers work only between greenlets.
    """

    def __init__(self, path: str, version: Version, read: Read) -> None:
        self.version = version
        self.inventory: Inventory | None = None
        self.error: Exception | None = None
        self.is_done = False
        self._path = path
        self._read = read

    def start(self) -> None:
        """Start the thread. If no thread can be started (TasksMax of the unit), read the file here: requests wait."""
        from gevent import monkey  # imported here, because programs that only read an inventory need no gevent

        # A thread of the operating system, even if gevent has replaced threads: a greenlet would block all others.
        try:
            monkey.get_original('_thread', 'start_new_thread')(self._run, ())
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        try:
            self.version, self.inventory = self._read(self._path)
        except Exception as error:
            self.error = error
        self.is_done = True


class ReloadingInventory:
    """The inventory of a file, in its newest valid version. Shared by all threads of a worker."""

    def __init__(
        self,
        path: str,
        *,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = lambda seconds: time.sleep(seconds),
        read: Read | None = None,
    ) -> None:
        """Read the file. Raises ConfigError if it is invalid, so the program does not start."""
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self._sleep = sleep  # looks time.sleep up at each call, because gevent replaces it in a worker
        self._read = read or _read
        self._lock = threading.Lock()
        self._reload: _Reload | None = None
        version, inventory = self._read(path)
        # Immutable and replaced as a whole, so a thread needs no lock to read it.
        self._state = _State(inventory, version, clock())

    def is_reloading(self) -> bool:
        """Whether a changed file is being read."""
        return self._reload is not None

    def current(self) -> Inventory:
        """The inventory in use. If the file has changed, waits up to ``MAX_WAIT_S`` for the new inventory."""
        if self._reload is None and self._clock() - self._state.checked_at_s < self._interval_s:
            return self._state.inventory
        self._check()
        for _ in range(int(MAX_WAIT_S / POLL_INTERVAL_S)):
            reload = self._reload
            if reload is None or reload.is_done:
                break
            self._sleep(POLL_INTERVAL_S)
        self._check()
        return self._state.inventory

    def _check(self) -> None:
        """Start a reload if the file has changed. Use the result of a finished reload."""
        with self._lock:
            if self._reload is None:
                self._start_if_changed()
            elif self._reload.is_done:
                self._finish(self._reload)

    def _start_if_changed(self) -> None:
        now_s = self._clock()
        if now_s - self._state.checked_at_s < self._interval_s:
            return
        try:
            version: Version = _version(os.stat(self._path))
        except OSError:
            version = None
        if version != self._state.version:
            self._reload = _Reload(self._path, version, self._read)
            self._reload.start()
        self._state = _State(self._state.inventory, self._state.version, now_s)

    def _finish(self, reload: _Reload) -> None:
        inventory = reload.inventory
        if inventory is None:
            unexpected = None if isinstance(reload.error, ConfigError) else reload.error
            LOG.error(
                'The new inventory file is invalid, the old inventory stays in use: %s',
                reload.error,
                exc_info=unexpected,
            )
        else:
            LOG.info(
                'Read %s: %d instances on %d networks', self._path, len(inventory.instances), len(inventory.networks)
            )
        self._state = _State(inventory or self._state.inventory, reload.version, self._state.checked_at_s)
        self._reload = None


def _read(path: str) -> tuple[Version, Inventory]:
    status, data = contents(path)
    return _version(status), parse(data, path)


def _version(status: os.stat_result) -> Version:
    return status.st_mtime_ns, status.st_size, status.st_ino
