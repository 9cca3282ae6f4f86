# SPDX-License-Identifier: Apache-2.0
"""The files in the directory of the counts, and the counts of processes that have ended.

prometheus-client writes ``counter_PID.db``, ``histogram_PID.db`` and ``gauge_MODE_PID.db``. When a process has ended,
its counters and histograms must stay in the sums: otherwise a counter would fall at each reload. Its gauges must be
removed. So each process that starts adds the counts of ended processes to ``counter_ended.db`` and
``histogram_ended.db``, and removes the files of these processes. The number of files does not grow with each reload.

A process counts as running while it holds the lock (flock) of ``process_PID.lock``. A process that changes or reads the
files holds the lock of ``directory.lock``. Only the user of the workers may open the lock files, because permission to
open a file is permission to lock it. All processes must be in the same pid namespace: containers that share the
directory need the pid namespace of the host.

The space of a file is allocated when the file is made. So if there is no space left, opening the file fails. In a
sparse file a later count would end the process with SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import stat
import struct
import time
from collections.abc import Iterator

BYTES = {'counter': 1 << 16, 'histogram': 1 << 18, 'gauge_livesum': 1 << 16, 'gauge_livemax': 1 << 16,
         'gauge_livemin': 1 << 16}  # fmt: skip
"""The files of a process, and their sizes. A histogram has 13 values for each combination of labels."""

ENDED = 'ended'
LOCK = 'directory.lock'
LOCK_WAIT_S, LOCK_RETRY_S = 1.0, 0.01
"""How long a reader waits for the lock, and the pause between two attempts. A writer needs some milliseconds."""
MAX_BYTES = 1 << 24
_NAME = re.compile(r'(?P<kind>counter|histogram|gauge_[a-z]+)_(?P<pid>[0-9]+)\.db')
_READ = re.compile(rf'(counter|histogram|gauge_live[a-z]+)_([0-9]+|{ENDED})\.db')
_LOCK_NAME = re.compile(r'process_([0-9]+)\.lock')
_CREATE = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def locked_to_write(directory: str) -> Iterator[None]:
    """Hold the exclusive lock inside the block. Waits until no other process has it."""
    fd = os.open(os.path.join(directory, LOCK), _CREATE, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked_to_read(directory: str) -> Iterator[None]:
    """Hold the shared lock inside the block. Raises TimeoutError if a process that writes keeps it for LOCK_WAIT_S.

    Never blocks the event loop. If there is no lock file yet, no process counts, and no lock is needed.
    """
    path = os.path.join(directory, LOCK)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        until_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    raise TimeoutError(errno.ETIMEDOUT, 'another process holds the lock', path) from None
                time.sleep(LOCK_RETRY_S)
        yield
    finally:
        os.close(fd)


def of_counts(directory: str) -> list[str]:
    """The paths of the metric files of valid size. The caller must hold the lock."""
    paths = [os.path.join(directory, name) for name in os.listdir(directory) if _READ.fullmatch(name)]
    return [
        path for path in paths if stat.S_ISREG((found := os.lstat(path)).st_mode) and 8 <= found.st_size <= MAX_BYTES
    ]


def begin(directory: str) -> int:
    """Add up the counts of ended processes, then make the files of this process. The caller must hold the lock.

    Returns the descriptor of this process's lock file. The process counts as running until the descriptor is closed.
    """
    lock = _lock_own(directory)
    _add_ended(directory)
    for kind, size in BYTES.items():
        fd = os.open(os.path.join(directory, f'{kind}_{os.getpid()}.db'), _CREATE, 0o644)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
    return lock


def _lock_own(directory: str) -> int:
    path = os.path.join(directory, f'process_{os.getpid()}.lock')
    fd = os.open(path, _CREATE, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Files of a process that had this pid before.
    for old in glob.glob(os.path.join(glob.escape(directory), f'*_{os.getpid()}.db')):
        _move_to_ended(directory, os.path.basename(old))
    return fd


def _add_ended(directory: str) -> None:
    running = {str(os.getpid())}
    for name in os.listdir(directory):
        if (found := _LOCK_NAME.fullmatch(name)) and found[1] != str(os.getpid()):
            if _is_locked(os.path.join(directory, name)):
                running.add(found[1])
            else:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(directory, name))
    for name in os.listdir(directory):
        if (found := _NAME.fullmatch(name)) and found['pid'] not in running:
            _move_to_ended(directory, name)


def _is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True  # unknown: its counts stay where they are
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _move_to_ended(directory: str, name: str) -> None:
    """Read the counts in the file ``name``, remove the file, then add the counts to those of ended processes.

    If this process is killed between the last two steps, counts are lost, but not doubled.
    Prometheus treats a counter that fell as a counter that started again. It would treat doubled counts as new events.
    """
    from prometheus_client.mmap_dict import MmapedDict

    path = os.path.join(directory, name)
    values: list[tuple[str, float]] = []
    kind = name.partition('_')[0]
    if kind != 'gauge':
        try:
            values = _read(path)
        except (OSError, ValueError, RuntimeError, struct.error):
            return  # not a file of counts
    with contextlib.suppress(OSError):
        os.unlink(path)
    if not any(value for _, value in values):
        return
    ended = MmapedDict(os.path.join(directory, f'{kind}_{ENDED}.db'))  # type: ignore[no-untyped-call]
    try:
        for key, value in values:
            ended.write_value(key, ended.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        ended.close()  # type: ignore[no-untyped-call]


def _read(path: str) -> list[tuple[str, float]]:
    from prometheus_client.mmap_dict import MmapedDict

    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise ValueError('not a file of counts')
        every = MmapedDict.read_all_values_from_file(f'/proc/self/fd/{fd}')  # type: ignore[no-untyped-call]
        return [(key, value) for key, value, *_ in every]
    finally:
        os.close(fd)
