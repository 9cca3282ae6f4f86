# SPDX-License-Identifier: Apache-2.0
"""Read the inventory again when its file has changed; an invalid file does not replace the inventory read before.

Replace the file by renaming a complete one over it: then no process reads a half-written file. A change is detected
by modification time, size or inode, at the first call that is at least ``interval_s`` after the last check.
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

_Version = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class _State:
    """The inventory in use, the version of the file read last (valid or not), and the time of the last check."""

    inventory: Inventory
    version: _Version
    checked_at_s: float


class ReloadingInventory:
    """The inventory of a file: always the newest valid one. Shared by all threads of a worker."""

    def __init__(self, path: str, *, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file now. Raises ConfigError: an invalid file stops the start."""
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self._reload_lock = threading.Lock()
        status, data = contents(path)
        # Immutable and replaced as a whole: a thread reads the old state or the new one without a lock.
        self._state = _State(parse(data, path), _version(status), clock())

    def current(self) -> Inventory:
        """The inventory in use. Reads a changed file first; other threads get the old inventory meanwhile."""
        state = self._state
        if self._clock() - state.checked_at_s < self._interval_s or not self._reload_lock.acquire(blocking=False):
            return state.inventory
        try:
            self._state = self._checked(self._state)
        finally:
            self._reload_lock.release()
        return self._state.inventory

    def _checked(self, state: _State) -> _State:
        now_s = self._clock()
        try:
            version: _Version = _version(os.stat(self._path))
        except OSError:
            version = None
        if version == state.version:
            return _State(state.inventory, version, now_s)
        try:
            status, data = contents(self._path)
            version = _version(status)
            inventory = parse(data, self._path)
        except ConfigError as error:
            LOG.error('The inventory is not replaced, the one read before stays in use: %s', error)
            return _State(state.inventory, version, now_s)
        LOG.info('Read %s: %d instances on %d networks', self._path, len(inventory.instances), len(inventory.networks))
        return _State(inventory, version, now_s)


def _version(status: os.stat_result) -> _Version:
    return status.st_mtime_ns, status.st_size, status.st_ino
