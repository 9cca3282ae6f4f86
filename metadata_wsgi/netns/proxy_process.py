# SPDX-License-Identifier: Apache-2.0
"""Starts, adopts and stops the process of a namespace proxy.

Pid files have the same paths as in Grizzly's process manager (``state_paths.pid_file``). As in Grizzly, a proxy counts
as running if its pid is alive and the id of its router or network is in its command line. So ``attach`` keeps the
proxies that an L3 agent started, and an L3 agent keeps the proxies that ``attach`` started. The id must be a value of
--router_id or --network_id, or the name of a configuration or pid file. Elsewhere in a command line the id is ignored.

An unprivileged process may be able to write to the directory of the pid files. So ``safe_files`` opens them, and a
link, a FIFO or a file of another user is not read.

After a process has ended, the kernel may give its pid to another process. So a process is opened as a pidfd (Linux 5.3)
*before* its command line is read, and signals are sent through the pidfd.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from metadata_wsgi import limits, safe_files
from metadata_wsgi.errors import EXHAUSTED, NetnsError
from metadata_wsgi.netns import namespaces

STOP_TIMEOUT_S = limits.GRACEFUL_TIMEOUT_S + 3.0
"""Time from SIGTERM to SIGKILL. It is longer than a proxy needs to finish the requests in progress."""
SIGKILL_TIMEOUT_S = 5.0
MAX_PID_FILE_BYTES = 64
PIDFD_GETFD = 438
"""Number of the system call pidfd_getfd, the same on every architecture. Python's os module does not have the call."""

HOLDER = 'metadata-wsgi-holder'
"""A word in the command line of a holder (``bin/metadata-wsgi-haproxy``)."""


def read_pid(pid_file: str) -> int | None:
    """The pid in the file; None if the file does not exist, is not safe, or has no number.

    Raises NetnsError if descriptors or memory are exhausted.
    """
    if not os.path.lexists(pid_file):
        # Before the directories of its path are checked, because most targets have no pid file.
        return None
    try:
        with _pid_directory(pid_file) as dir_fd:
            fd = safe_files.open_file(os.path.basename(pid_file), os.O_RDONLY, dir_fd=dir_fd)
            try:
                number = int(os.read(fd, MAX_PID_FILE_BYTES))
            finally:
                os.close(fd)
    except ValueError:
        return None
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise NetnsError(f'pid file {pid_file}: {error.strerror}') from error
        return None
    return number if number > 0 else None


def running_pid(pid_file: str, uuid: str) -> int | None:
    """The pid of the running proxy of ``uuid``; None if the pid file is missing or stale.

    Raises NetnsError if descriptors or memory are exhausted: then it is unknown whether the process runs.
    """
    pid = read_pid(pid_file)
    with _open_pidfd(pid, uuid) as pidfd:
        return pid if pidfd is not None else None


def ensure_running(
    pid_file: str, uuid: str, spawn: Callable[[str], object], *, is_wanted: Callable[[int], bool]
) -> bool:
    """Keep the running process if ``is_wanted(pid)``, else stop it and start another. Returns whether one was started.

    To start a process, ``spawn`` is called with the path of the pid file. The new process must write the file.
    """
    running = running_pid(pid_file, uuid)
    if running is not None and is_wanted(running):
        return False
    stop(pid_file, uuid)
    try:
        with _pid_directory(pid_file, make=True):
            pass
    except OSError as error:
        raise NetnsError(f'pid file {pid_file}: {error.strerror}') from error
    spawn(pid_file)
    return True


def stop(pid_file: str, uuid: str, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the process of ``uuid`` (SIGTERM, then SIGKILL after ``timeout_s`` seconds) and remove the pid file.

    Returns whether there was a process. If the id is not in the command line of the process, the process is not
    stopped. Raises NetnsError if the process does not end after SIGKILL.
    """
    with _open_pidfd(read_pid(pid_file), uuid) as pidfd:
        if pidfd is not None:
            _terminate(pidfd, pid_file, timeout_s)
    if not os.path.lexists(pid_file):
        return pidfd is not None
    try:
        with _pid_directory(pid_file) as dir_fd:
            os.unlink(os.path.basename(pid_file), dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NetnsError(f'pid file {pid_file}: {error.strerror}') from error
    return pidfd is not None


def is_holder(pid: int) -> bool:
    """Whether the process is a holder: it has copies of the keeper's sockets, but does not accept connections.

    Raises NetnsError if descriptors or memory are exhausted.
    """
    try:
        return HOLDER.encode() in Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise NetnsError(f'pid {pid}: {error.strerror}') from error
        return False


def listens(pid: int, port: int) -> bool:
    """Whether process ``pid`` listens on the TCP port ``port``, in its own namespace.

    The process's sockets are read, and not its command line, because a program may change its command line. Raises
    NetnsError if descriptors or memory are exhausted.
    """
    inodes = set()
    try:
        with os.scandir(f'/proc/{pid}/fd') as descriptors:
            for fd in descriptors:
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    inodes.add(os.readlink(fd.path))
        return any(f'socket:[{inode}]' in inodes for found, inode in _listening_sockets(pid) if found == port)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise NetnsError(f'pid {pid}: {error.strerror}') from error
        return False


def is_port_open(namespace: str, port: int) -> bool:
    """Whether any process listens on the TCP port in the namespace.

    The test is a bind() with SO_REUSEADDR, which fails only if a socket listens on the port. To read /proc/net/tcp
    would take 10 to 30 ms for each namespace, because the kernel reads the table of all sockets of the host.
    """
    return namespaces.run_in(namespace, lambda: not _can_bind(port))


def copy_proxy_listeners(pid_file: str, uuid: str, port: int) -> list[socket.socket]:
    """Copies of the listening sockets on ``port`` of the running process of ``uuid``.

    When the process ends, the copies stay open with their accept queues, so no connection is refused. Before Linux 5.6
    the list is empty, because there is no pidfd_getfd(2). Then the caller must open new sockets.
    """
    pid = read_pid(pid_file)
    with _open_pidfd(pid, uuid) as pidfd:
        if pid is None or pidfd is None:
            return []
        return _copy_sockets(pid, pidfd, {inode for found, inode in _listening_sockets(pid) if found == port})


def copy_keeper_listeners(keeper_pid: int, namespace: str, port: int) -> list[socket.socket]:
    """Copies of the keeper's listening sockets on ``port`` in ``namespace``."""
    inodes = namespaces.run_in(
        namespace, lambda: {inode for found, inode in _listening_sockets('thread-self') if found == port}
    )
    if not inodes:
        return []
    try:
        pidfd = os.pidfd_open(keeper_pid)
    except OSError:
        return []
    try:
        return _copy_sockets(keeper_pid, pidfd, inodes)
    finally:
        os.close(pidfd)


def unix_listener_pid(path: str, kind: int = socket.SOCK_STREAM, *, timeout_s: float = 5.0) -> int:
    """The pid of the process that listens on the unix socket ``path``. Raises OSError if there is none.

    unix(7): the peer credentials are those of the process that called listen().
    """
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(timeout_s)
        probe.connect(path)
        pid: int = struct.unpack('3i', probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid


def _can_bind(port: int) -> bool:
    family, host = (socket.AF_INET6, '::') if os.path.exists('/proc/net/if_inet6') else (socket.AF_INET, '')
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def _copy_sockets(pid: int, pidfd: int, inodes: set[str]) -> list[socket.socket]:
    names = {f'socket:[{inode}]' for inode in inodes}
    copies: dict[str, socket.socket] = {}
    with contextlib.suppress(OSError):
        for fd in os.scandir(f'/proc/{pid}/fd'):
            with contextlib.suppress(OSError):
                name = os.readlink(fd.path)
                if name in names and name not in copies:
                    copies[name] = socket.socket(fileno=_pidfd_getfd(pidfd, int(fd.name)))
    return list(copies.values())


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    copied: int = libc.syscall(PIDFD_GETFD, pidfd, fd, 0)
    if copied < 0:
        raise OSError(ctypes.get_errno(), 'pidfd_getfd')
    return copied


def _listening_sockets(pid: int | str) -> Iterator[tuple[int, str]]:
    """(port, inode) of every listening socket in the namespace of ``pid``. proc_net_tcp(5): state 0A is LISTEN."""
    for name in ('tcp', 'tcp6'):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f'/proc/{pid}/net/{name}').read_text(encoding='ascii').splitlines()[1:]:
                fields = line.split()
                if fields[3] == '0A':
                    yield int(fields[1].rpartition(':')[2], 16), fields[9]


@contextlib.contextmanager
def _pid_directory(pid_file: str, *, make: bool = False) -> Iterator[int]:
    """A descriptor of the pid file's directory. ``make``: create the directory if it does not exist."""
    dir_fd = safe_files.open_directory(os.path.dirname(pid_file), make=make)
    try:
        yield dir_fd
    finally:
        os.close(dir_fd)


def _has_id(command_line: bytes, uuid: str) -> bool:
    """Whether this is the command line of a proxy of ``uuid``: ours, Grizzly's, or Neutron's haproxy.

    The words may be separated by blanks, because a process may set its title (setproctitle).
    """
    id_ = re.escape(uuid)
    text = command_line.replace(b'\0', b' ').decode(errors='replace')
    return bool(re.search(rf'--(?:router|network)[_-]id[= ]{id_}(?![\w-])|/{id_}\.(?:conf|pid)(?!\w)', text))


@contextlib.contextmanager
def _open_pidfd(pid: int | None, uuid: str) -> Iterator[int | None]:
    """A pidfd of process ``pid`` if it is alive and its command line is that of a proxy of ``uuid``, else None.

    Raises NetnsError if descriptors or memory are exhausted.
    """
    try:
        pidfd = os.pidfd_open(pid) if pid else None
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise NetnsError(f'pid {pid} of {uuid}: {error.strerror}') from error
        pidfd = None
    if pidfd is None:
        yield None
        return
    try:
        try:
            command_line = Path(f'/proc/{pid}/cmdline').read_bytes()
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise NetnsError(f'pid {pid} of {uuid}: {error.strerror}') from error
            command_line = b''
        # If the process is still alive after the read, the command line was not of a later process with the same pid.
        yield pidfd if _has_id(command_line, uuid) and not _has_ended(pidfd, 0) else None
    finally:
        os.close(pidfd)


def _terminate(pidfd: int, pid_file: str, timeout_s: float) -> None:
    for signal_number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, SIGKILL_TIMEOUT_S)):
        try:
            signal.pidfd_send_signal(pidfd, signal_number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise NetnsError(f'the process of pid file {pid_file} cannot be stopped: {error.strerror}') from error
        if _has_ended(pidfd, wait_s):
            return
    raise NetnsError(f'the process of pid file {pid_file} does not end, not even after SIGKILL')


def _has_ended(pidfd: int, wait_s: float) -> bool:
    """Whether the process ends within ``wait_s`` seconds. A pidfd becomes readable at the end (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))
