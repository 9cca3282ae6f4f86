# SPDX-License-Identifier: Apache-2.0
"""The memory in which a worker publishes its table of failures. ``metadata-wsgi status`` reads the table there.

Before the master forks a worker, it makes an anonymous file in memory (memfd_create(2)) for the worker. The master
keeps the file open. So when a worker has ended, even by SIGKILL, its last table can still be read. The file is in no
directory. So a worker cannot replace the file by a link, nothing must be removed after a crash, and no directory
permissions are needed.

The size is sealed, so a worker cannot make the file larger. A worker is not trusted: the reader parses the table with
limits, and leaves invalid rows out.

``status`` must run as root or as the master's user. It finds the memory among the descriptors of the master, by the
memory's name. It needs no path, socket or request. The shipped units start the master as the user ``metadata-wsgi``, so
root reads the memories of every user. A user of this host may therefore publish false rows, as a compromised worker
may. The rows are texts to read: no program acts on them.

Layout: length and CRC-32 of the text (4 bytes each, little-endian), then the text, JSON. If a reader reads during a
write, the CRC is wrong, and the reader reads again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import mmap
import os
import stat
import struct
import time
import zlib
from collections import Counter
from collections.abc import Sequence

from metadata_wsgi import limits
from metadata_wsgi.failures import table
from metadata_wsgi.failures.table import Row

LOG = logging.getLogger(__name__)

NAME = 'metadata_wsgi_failures'
_LINK = f'/memfd:{NAME} (deleted)'
_HEADER = struct.Struct('<II')
READ_ATTEMPTS, READ_PAUSE_S = 20, 0.01


class FailureMemory:
    """The memory of one worker. The master makes it. The worker calls ``write``."""

    def __init__(self) -> None:
        """Raises OSError if the kernel cannot make the memory."""
        self._fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, limits.FAILURE_MEMORY_BYTES)
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
        except OSError:
            os.close(self._fd)
            raise
        self._map: mmap.mmap | None = None

    def write(self, rows: Sequence[Row]) -> None:
        """Publish ``rows``. If the memory is too small for all rows, publish only the first ones."""
        if self._map is None:
            self._map = mmap.mmap(self._fd, limits.FAILURE_MEMORY_BYTES)
        text = json.dumps(table.to_objects(rows)).encode('ascii')
        while len(text) > limits.FAILURE_MEMORY_BYTES - _HEADER.size:
            rows = rows[: len(rows) * 3 // 4]
            text = json.dumps(table.to_objects(rows)).encode('ascii')
        # The old header does not fit the new text, and a reader that sees both reads again.
        self._map[_HEADER.size : _HEADER.size + len(text)] = text
        self._map[: _HEADER.size] = _HEADER.pack(len(text), zlib.crc32(text))

    def read(self) -> list[Row]:
        """The rows that the worker published last."""
        return read(self._fd)

    def close(self) -> None:
        """Close the memory. A worker closes those of other workers. The master closes those that it no longer needs."""
        os.close(self._fd)
        if self._map is not None:
            # The mapping has a descriptor of its own.
            self._map.close()


def read(fd: int) -> list[Row]:
    """The rows in the memory with the descriptor ``fd``. Empty if the memory contains no valid table."""
    for _ in range(READ_ATTEMPTS):
        data = os.pread(fd, limits.FAILURE_MEMORY_BYTES, 0)
        if len(data) < _HEADER.size:
            return []
        length, checksum = _HEADER.unpack_from(data)
        text = data[_HEADER.size : _HEADER.size + length]
        if not length:
            return []
        if len(text) == length and zlib.crc32(text) == checksum:
            try:
                return table.from_objects(json.loads(text))
            except (ValueError, RecursionError):
                return []
        time.sleep(READ_PAUSE_S)
    return []


def read_all(proc: str = '/proc') -> list[list[Row]]:
    """The tables of all workers on this host whose descriptors the calling user may read: root may read all.

    If several processes have the same memory open, it is read once. At most ``limits.FAILURE_MEMORIES_PER_USER``
    memories of another user are read, because a user or a compromised worker could make any number of them. If memories
    are left out, this is logged. Those of root and of the calling user are all read.
    """
    found: dict[tuple[int, int], list[Row]] = {}
    counts: Counter[int] = Counter()
    for pid in filter(str.isdecimal, os.listdir(proc)):
        # A process may end at any time, and the kernel refuses the descriptors of other users' processes.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            _read_process(f'{proc}/{pid}/fd', found, counts)
    for uid in counts:
        if _is_limited(uid) and counts[uid] > limits.FAILURE_MEMORIES_PER_USER:
            LOG.warning('Failures are left out: user %d has more than %d tables', uid, limits.FAILURE_MEMORIES_PER_USER)
    return list(found.values())


def _is_limited(uid: int) -> bool:
    return uid not in (0, os.geteuid())


def _read_process(directory: str, found: dict[tuple[int, int], list[Row]], counts: Counter[int]) -> None:
    """Add the tables of a process to ``found``. ``counts``: how many memories of each user were seen."""
    for entry in os.listdir(directory):
        path = f'{directory}/{entry}'
        # A user may give another file the name of a memory. open() fails for some kinds of file.
        with contextlib.suppress(OSError):
            if os.readlink(path) != _LINK:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in found:
                    continue
                # The owner is the user of the master. The worker, which has the memory open too, may have another user.
                counts[status.st_uid] += 1
                if not _is_limited(status.st_uid) or counts[status.st_uid] <= limits.FAILURE_MEMORIES_PER_USER:
                    found[status.st_dev, status.st_ino] = read(fd)
            finally:
                os.close(fd)
