# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces in /run/netns, where ``ip netns`` creates them.

Each name is a file in this directory, on which the namespace is mounted. After a crash or the restart of a container
plain files may remain. A plain file is not a namespace: its name is stale.

setns(2) changes the namespace of one thread. So a function that must run in another namespace runs in a new thread, and
the namespace of the calling thread never changes. There are two exceptions, because to start a thread takes ten times
as long as to enter a namespace:

- A function that already runs in the namespace is called directly.
- The threads of a pool with the initializer ``let_this_thread_enter`` enter the namespace themselves, and leave it
  after the call.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from metadata_wsgi.errors import NetnsError

T = TypeVar('T')

# os.setns and os.unshare are new in Python 3.12; pyroute2 has them, and takes 0.2 s to import.
_LIBC = ctypes.CDLL(None, use_errno=True)

DIRECTORY = '/run/netns'
INTERRUPTED_CALL_TIMEOUT_S = 30.0
"""Longest wait for the end of a call in a namespace after Ctrl-C."""
CLONE_NEWNET = 0x40000000  # <linux/sched.h>
SIOCGSKNS = 0x894C  # <linux/sockios.h>: a descriptor of a socket's namespace; needs root


class _ThreadState(threading.local):
    """``identity``: the namespace that the thread has entered. ``facts``: see ``facts``."""

    identity: tuple[int, int] | None = None
    facts: dict[Any, Any] | None = None
    may_enter = False


_thread = _ThreadState()


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in /run/netns: a namespace, or a stale name.

    ``identity`` as of ``identity()``, None for a stale name. ``age_s``: seconds since the file was created, if it is
    stale. ``ip netns add`` first creates the file and then mounts the namespace on it. So a new file may become a
    namespace.
    """

    name: str
    identity: tuple[int, int] | None
    age_s: float


def entries() -> list[Entry]:
    """All files in /run/netns, sorted by name.

    Raises NetnsError if /run/netns cannot be listed, for example because this process has too many open files.
    """
    found = []
    for name in _file_names():
        try:
            status = os.stat(path(name))
        except OSError:  # deleted meanwhile
            continue
        found.append(Entry(name, _identity(status), time.time() - status.st_mtime))
    return found


def names() -> list[str]:
    """The names of all namespaces of this host, sorted, without stale names. Raises as ``entries`` does."""
    return [entry.name for entry in entries() if entry.identity is not None]


def stale_names(min_age_s: float = 0.0) -> list[str]:
    """The stale names that are at least ``min_age_s`` old, sorted. Raises as ``entries`` does."""
    return [entry.name for entry in entries() if entry.identity is None and entry.age_s >= min_age_s]


def exists(name: str) -> bool:
    """Whether the namespace ``name`` exists."""
    return identity(name) is not None


def missing_reason(name: str) -> str:
    """A sentence for the operator: the reason why the namespace ``name`` does not exist."""
    if os.path.exists(path(name)) and identity(name) is None:
        return f'{path(name)} is a file and not a namespace; remove it: ip netns delete {name}'
    return f'there is no namespace {name} on this host'


def path(name: str) -> str:
    """The path of the namespace's file."""
    return f'{DIRECTORY}/{name}'


def identity(name: str) -> tuple[int, int] | None:
    """Device and inode of the namespace; None if it does not exist.

    If a namespace is deleted and created again under the same name, its identity is different.
    """
    try:
        return _identity(os.stat(path(name)))
    except OSError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int] | None:
    # All namespaces are on one file system of the kernel (nsfs). A plain file is on another file system.
    return (status.st_dev, status.st_ino) if status.st_dev == _nsfs_device() else None


@functools.cache
def _nsfs_device() -> int:
    return os.stat('/proc/self/ns/net').st_dev


def _file_names() -> list[str]:
    try:
        return sorted(os.listdir(DIRECTORY))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NetnsError(f'{DIRECTORY} cannot be read: {error.strerror}') from error


def identity_of(sock: socket.socket) -> tuple[int, int]:
    """The ``identity`` of the namespace in which ``sock`` was opened. Raises OSError, for example without root."""
    fd = fcntl.ioctl(sock, SIOCGSKNS)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino


def changed_at() -> float:
    """The time at which a name was last added or removed: the mtime of /run/netns, or 0.0 without this directory."""
    try:
        return os.stat(DIRECTORY).st_mtime
    except OSError:
        return 0.0


def name_of(pid: int) -> str | None:
    """The name of the network namespace of process ``pid``; None without a name, or if there is no such process.

    If the namespace was deleted and a new one has its name, returns None. Raises NetnsError as ``names`` does.
    """
    try:
        wanted = os.stat(f'/proc/{pid}/ns/net')
    except OSError:
        return None
    return next((name for name in _file_names() if identity(name) == (wanted.st_dev, wanted.st_ino)), None)


def run_in(name: str, fn: Callable[[], T]) -> T:
    """Call ``fn`` in the namespace ``name``. Returns its result or raises its exception.

    A socket that ``fn`` opens stays in the namespace. Raises NetnsError if the namespace does not exist or may not be
    entered. KeyboardInterrupt is raised after the end of ``fn``.
    """
    # If the namespace was deleted and created again meanwhile, the new one must be entered.
    if _thread.identity is not None and _thread.identity == identity(name):
        return fn()
    if _thread.may_enter and _thread.identity is None:
        return _run_in_this_thread(name, fn)
    return _run(_NamespaceCall(name, fn))


def let_this_thread_enter() -> None:
    """Let ``run_in`` change the namespace of this thread during a call. Not for the main thread.

    Other programs take the namespace of the main thread for that of the process. In a user namespace the thread may not
    be allowed to return to the namespace of the process. Then ``run_in`` starts threads.
    """
    if threading.get_native_id() == os.getpid():
        return
    try:
        _call_libc('setns', _own_namespace(), CLONE_NEWNET)
    except OSError:
        return
    _thread.may_enter = True


def facts() -> dict[Any, Any]:
    """What was found out about the namespace in the present call of ``run_in``. The dict ends with the call."""
    if _thread.facts is None:
        # Outside of ``run_in`` nothing is remembered.
        return {}
    return _thread.facts


def run_in_scratch(fn: Callable[[], T]) -> T:
    """Call ``fn`` in a new namespace without a name. The namespace exists until its last socket is closed."""
    return _run(_NamespaceCall(None, fn))


def _run(call: _NamespaceCall) -> Any:
    thread = threading.Thread(target=call, name=f'netns {call.name}')
    try:
        thread.start()
        call.has_ended.wait()
    except KeyboardInterrupt:
        # Ctrl-C does not stop the thread. The caller may undo what the thread changes only after its end. An
        # interrupted start() may have started the thread. Thread.join() is no help: if it was interrupted once, CPython
        # 3.11 takes the thread for ended.
        call.has_ended.wait(INTERRUPTED_CALL_TIMEOUT_S)
        raise
    thread.join()
    if call.error is not None:
        try:
            raise call.error
        finally:
            call.error = None
    return call.result


def _run_in_this_thread(name: str, fn: Callable[[], T]) -> T:
    _enter(name)
    try:
        return fn()
    finally:
        try:
            _call_libc('setns', _own_namespace(), CLONE_NEWNET)
        except OSError as error:
            # From now on the thread is in the namespace for good, so other namespaces are entered by new threads.
            raise NetnsError(f'namespace {name}: cannot be left: {error.strerror}') from error
        else:
            _thread.identity = _thread.facts = None


@functools.cache
def _own_namespace() -> int:
    """A descriptor of the namespace of this process."""
    return os.open('/proc/self/ns/net', os.O_RDONLY | os.O_CLOEXEC)


class _NamespaceCall:
    def __init__(self, name: str | None, fn: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self.has_ended = threading.Event()
        self.name = name or '(scratch)'
        self._is_scratch = name is None
        self._fn = fn
        self._caller = threading.get_native_id()

    def __call__(self) -> None:
        try:
            self._enter()
            self.result = self._fn()
        except BaseException as error:
            self.error = error
        finally:
            self.has_ended.set()

    def _enter(self) -> None:
        # If gevent has replaced threads by greenlets, setns would move the caller.
        if threading.get_native_id() == self._caller:
            raise NetnsError(f'namespace {self.name}: cannot be entered from a process without real threads')
        if self._is_scratch:
            try:
                _call_libc('unshare', CLONE_NEWNET)
            except OSError as error:
                raise NetnsError(f'a namespace cannot be created: {error.strerror}') from error
            return
        _enter(self.name)


def _enter(name: str) -> None:
    try:
        fd = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NetnsError(f'there is no namespace {name} on this host') from error
    except OSError as error:
        raise NetnsError(f'namespace {name}: {error.strerror}') from error
    try:
        status = os.fstat(fd)
        _call_libc('setns', fd, CLONE_NEWNET)
    except OSError as error:
        reason = os.strerror(error.errno or 0) if exists(name) else missing_reason(name)
        raise NetnsError(f'namespace {name}: cannot be entered: {reason}') from error
    finally:
        os.close(fd)
    _thread.identity, _thread.facts = (status.st_dev, status.st_ino), {}


def _call_libc(name: str, *arguments: int) -> None:
    """Call setns(2) or unshare(2) of the C library. Raises OSError if the call fails.

    Python's os module has these functions from 3.12 on. pyroute2 has them too, but its import takes megabytes of memory
    in the keeper.
    """
    if getattr(_LIBC, name)(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
