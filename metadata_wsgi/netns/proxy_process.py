# SPDX-License-Identifier: Apache-2.0
"""The process of a namespace proxy: adopt it, start it, end it.

Pid files lie where Grizzly's process manager has them (``paths.pid_file``), and as there a proxy is active
when its pid is alive and its router's or network's id is in its command line. So proxies that an L3
agent started can be adopted, and it can adopt ours.

A pid is only a number, and is given to another process as soon as its owner has gone. So a process is
held by a pidfd (Linux 5.3) *before* its command line is read, and signalled through it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces


def pid(pid_file: str) -> int | None:
    """The number in the file; None if there is no file, or no number in it."""
    try:
        number = int(Path(pid_file).read_text(encoding='ascii', errors='replace'))
    except (OSError, ValueError):
        return None
    return number if number > 0 else None


def active(pid_file: str, uuid: str) -> int | None:
    """The pid of the running process of ``uuid``; None if the file is missing or stale."""
    number = pid(pid_file)
    with _held(number, uuid) as pidfd:
        return number if pidfd is not None else None


def enable(pid_file: str, uuid: str, spawn: Callable[[str], object], *, wanted: Callable[[int], bool]) -> bool:
    """Keep the running process if it is ``wanted`` (asked with its pid), else replace it; True if ``spawn`` was called.

    ``spawn`` gets the pid file's name; the process itself writes the file.
    """
    running = active(pid_file, uuid)
    if running is not None and wanted(running):
        return False
    disable(pid_file, uuid)
    try:
        os.makedirs(os.path.dirname(pid_file), mode=0o755, exist_ok=True)
    except OSError as error:
        raise NetnsError(f'pid file {pid_file}: {error.strerror}') from error
    spawn(pid_file)
    return True


def disable(pid_file: str, uuid: str, *, patience_s: float = 10.0) -> bool:
    """End the process of ``uuid`` (SIGTERM; SIGKILL after ``patience_s`` seconds) and remove the file.

    Returns whether there was a process. A process whose command line does not have the id is somebody
    else's and is left alone, whatever the file says. Raises NetnsError if it survives SIGKILL.
    """
    with _held(pid(pid_file), uuid) as pidfd:
        if pidfd is not None:
            _end(pidfd, pid_file, patience_s)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pid_file)
    return pidfd is not None


def listens(pid_: int, port: int) -> bool:
    """Whether the process itself listens on that TCP port, in whatever namespace it is.

    Asked from its sockets and not its command line: a program may rename itself.
    """
    inodes = set()
    try:
        for fd in os.scandir(f'/proc/{pid_}/fd'):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(fd.path))
        return any(f'socket:[{inode}]' in inodes for found, inode in _listeners(pid_) if found == port)
    except OSError:
        return False


def take(pid_file: str, uuid: str, port: int) -> list[socket.socket]:
    """The sockets on which the running process of ``uuid`` listens on that port, as ours too.

    They stay open when the process ends, and so does the queue of who wants in: none of them is refused.
    None before Linux 5.6 (pidfd_getfd(2)); then they have to be opened anew.
    """
    number = pid(pid_file)
    with _held(number, uuid) as pidfd:
        if number is None or pidfd is None:
            return []
        return _taken(number, pidfd, {inode for found, inode in _listeners(number) if found == port})


def borrow(pid_: int, namespace: str, port: int) -> list[socket.socket]:
    """The sockets on which ``pid_``, wherever it is itself, listens on that port in ``namespace``; likewise as ours."""
    inodes = namespaces.run_in(
        namespace, lambda: {inode for found, inode in _listeners('thread-self') if found == port}
    )
    if not inodes:
        return []
    try:
        pidfd = os.pidfd_open(pid_)
    except OSError:
        return []
    try:
        return _taken(pid_, pidfd, inodes)
    finally:
        os.close(pidfd)


def serving(path: str, kind: int = socket.SOCK_STREAM, *, within_s: float = 5.0) -> int:
    """The process that listens on the unix socket; OSError if nobody does.

    unix(7): the peer's credentials are those of its listen().
    """
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(within_s)
        probe.connect(path)
        number: int = struct.unpack('3i', probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return number


def _taken(number: int, pidfd: int, inodes: set[str]) -> list[socket.socket]:
    names = {f'socket:[{inode}]' for inode in inodes}
    taken: dict[str, socket.socket] = {}
    with contextlib.suppress(OSError):
        for fd in os.scandir(f'/proc/{number}/fd'):
            with contextlib.suppress(OSError):
                name = os.readlink(fd.path)
                if name in names and name not in taken:
                    taken[name] = socket.socket(fileno=_getfd(pidfd, int(fd.name)))
    return list(taken.values())


def _getfd(pidfd: int, fd: int) -> int:
    # The number is the same on every architecture that got it in 5.6 or later; os has no name for it.
    libc = ctypes.CDLL(None, use_errno=True)
    got: int = libc.syscall(438, pidfd, fd, 0)
    if got < 0:
        raise OSError(ctypes.get_errno(), 'pidfd_getfd')
    return got


def _listeners(pid_: int | str) -> Iterator[tuple[int, str]]:
    """(port, inode) of every listening socket of the process's namespace; proc_net_tcp(5), state 0A is LISTEN."""
    for name in ('tcp', 'tcp6'):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f'/proc/{pid_}/net/{name}').read_text(encoding='ascii').splitlines()[1:]:
                words = line.split()
                if words[3] == '0A':
                    yield int(words[1].rpartition(':')[2], 16), words[9]


@contextlib.contextmanager
def _held(number: int | None, uuid: str) -> Iterator[int | None]:
    """A pidfd of the process if it is alive and has ``uuid`` in its command line, else None."""
    try:
        pidfd = os.pidfd_open(number) if number else None
    except OSError:
        pidfd = None
    if pidfd is None:
        yield None
        return
    try:
        try:
            words = Path(f'/proc/{number}/cmdline').read_bytes()
        except OSError:
            words = b''
        # Alive after the reading: then what was read was this process's and no successor's.
        yield pidfd if uuid.encode() in words and not _ended(pidfd, 0) else None
    finally:
        os.close(pidfd)


def _end(pidfd: int, pid_file: str, patience_s: float) -> None:
    for sign, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        try:
            signal.pidfd_send_signal(pidfd, sign)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise NetnsError(f'the process of pid file {pid_file} may not be ended: {error.strerror}') from error
        if _ended(pidfd, wait_s):
            return
    raise NetnsError(f'the process of pid file {pid_file} does not end, not even by SIGKILL')


def _ended(pidfd: int, wait_s: float) -> bool:
    """Whether the process has ended within ``wait_s`` seconds; a pidfd becomes readable then (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))
