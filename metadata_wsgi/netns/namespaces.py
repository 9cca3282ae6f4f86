# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, as ``ip netns`` keeps them under /run/netns.

A caller never changes its own namespace: what has to happen inside one happens in a thread that is
made for it and ends with it, because setns(2) moves a thread and not a process.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pyroute2 import netns

from metadata_wsgi.errors import NetnsError

T = TypeVar('T')

DIRECTORY = '/run/netns'
SIOCGSKNS = 0x894C  # <linux/sockios.h>: a descriptor of the namespace a socket is in; root's


def names() -> list[str]:
    """All named namespaces of this host, sorted."""
    return sorted(netns.listnetns(DIRECTORY))


def exists(name: str) -> bool:
    """Whether there is a namespace of that name."""
    return os.path.exists(path(name))


def path(name: str) -> str:
    """The file that stands for the namespace."""
    return f'{DIRECTORY}/{name}'


def identity(name: str) -> tuple[int, int] | None:
    """What tells the namespace that has this name now from one that had it before; None if there is none."""
    try:
        found = os.stat(path(name))
    except OSError:
        return None
    return found.st_dev, found.st_ino


def identity_of(sock: socket.socket) -> tuple[int, int]:
    """The ``identity`` of the namespace in which ``sock`` was opened. OSError where the kernel does not say."""
    fd = fcntl.ioctl(sock, SIOCGSKNS)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return found.st_dev, found.st_ino


def changed_at() -> float:
    """When a name last came or went, in the file system's clock; 0 if there never was one."""
    try:
        return os.stat(DIRECTORY).st_mtime
    except OSError:
        return 0.0


def name_of(pid: int) -> str | None:
    """The name of the namespace in which the process runs; None if it has no name or there is no such process.

    A namespace that was deleted and made anew under its old name is another one: a process that still
    runs in the old one has no name.
    """
    try:
        wanted = os.stat(f'/proc/{pid}/ns/net')
    except OSError:
        return None
    for name in names():
        try:
            found = os.stat(path(name))
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return name
    return None


def run_in(name: str, fn: Callable[[], T]) -> T:
    """Call ``fn`` inside the namespace and return what it returns, or raise what it raises.

    A socket that ``fn`` opens stays in that namespace wherever it is used afterwards. Raises NetnsError
    when there is no such namespace or entering it is not allowed.
    """
    return _run(_Inside(name, fn))


def run_in_new(fn: Callable[[], T]) -> T:
    """The same in a namespace that is made for this call: without a name, nobody's, and gone with its last socket."""
    return _run(_Inside(None, fn))


def _run(inside: _Inside) -> Any:
    thread = threading.Thread(target=inside, name=f'netns {inside.name}')
    thread.start()
    thread.join()
    if inside.error is not None:
        try:
            raise inside.error
        finally:
            inside.error = None
    return inside.results[0]


class _Inside:
    def __init__(self, name: str | None, fn: Callable[[], object]) -> None:
        self.results: list = []  # type: ignore[type-arg]
        self.error: BaseException | None = None
        self.name = name or 'of nobody'
        self._new = name is None
        self._fn = fn
        self._caller = threading.get_native_id()

    def __call__(self) -> None:
        try:
            self._enter()
            self.results.append(self._fn())
        except BaseException as error:
            self.error = error

    def _enter(self) -> None:
        # Where gevent has replaced threads by greenlets, setns would move the caller.
        if threading.get_native_id() == self._caller:
            raise NetnsError(f'namespace {self.name}: cannot be entered from a process without real threads')
        if self._new:
            if ctypes.CDLL(None, use_errno=True).unshare(netns.CLONE_NEWNET):
                raise NetnsError(f'a namespace cannot be made: {os.strerror(ctypes.get_errno())}')
            return
        try:
            fd = os.open(path(self.name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NetnsError(f'namespace {self.name}: {error.strerror}') from error
        try:
            netns.setns(fd)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise NetnsError(f'namespace {self.name}: cannot be entered: {why}') from error
        finally:
            os.close(fd)
