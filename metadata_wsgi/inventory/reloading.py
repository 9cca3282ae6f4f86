# SPDX-License-Identifier: Apache-2.0
"""Read the inventory again when the file has changed; keep the old one in force while the new one is wrong.

Replace the file by renaming a finished one over it: then nobody ever reads a half-written one. A change
is seen by time of modification, size or inode, at the first question that is at least ``interval_s``
after the last look.
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
class _Held:
    """What is in force, the version of the file that was read last (in force or not), and when was the last look."""

    inventory: Inventory
    version: _Version
    looked_at_s: float


class WatchedInventory:
    """The inventory in a file, always the newest one that is right. Shared by all threads of a worker."""

    def __init__(self, path: str, *, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file now; raises ConfigError, because a start with a wrong file is no start."""
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self._reading = threading.Lock()
        status, data = contents(path)
        # One slot, replaced as a whole: a reader sees the old state or the new one, and needs no lock.
        self._held = [_Held(parse(data, path), _version(status), clock())]

    def current(self) -> Inventory:
        """The inventory in force. Reads a changed file first; threads that ask meanwhile get the old one."""
        held = self._held[0]
        if self._clock() - held.looked_at_s < self._interval_s or not self._reading.acquire(blocking=False):
            return held.inventory
        try:
            self._held[0] = self._looked(self._held[0])
        finally:
            self._reading.release()
        return self._held[0].inventory

    def _looked(self, held: _Held) -> _Held:
        now_s = self._clock()
        try:
            version: _Version = _version(os.stat(self._path))
        except OSError:
            version = None
        if version == held.version:
            return _Held(held.inventory, version, now_s)
        try:
            status, data = contents(self._path)
            version = _version(status)
            inventory = parse(data, self._path)
        except ConfigError as error:
            LOG.error('The inventory is not replaced, the one read before stays in force: %s', error)
            return _Held(held.inventory, version, now_s)
        LOG.info('Read %s: %d instances on %d networks', self._path, len(inventory.instances), len(inventory.networks))
        return _Held(inventory, version, now_s)


def _version(status: os.stat_result) -> _Version:
    return status.st_mtime_ns, status.st_size, status.st_ino
