# SPDX-License-Identifier: Apache-2.0
"""Notices at once that a namespace proxy has ended, even if it is no child of this process.

A process is watched through a pidfd (pidfd_open(2), Linux 5.3). The pidfd becomes readable when the process ends, and
never refers to a later process with the same pid. One epoll instance has all pidfds, so a wait costs the same for one
process and for a thousand.
"""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar('Key', bound=Hashable)

DESCRIPTOR_SHARE = 0.5
"""Pidfds use at most this part of the descriptor limit. The rest is for the other work of this process."""


class ProcessExits(Generic[Key]):
    """Watches processes by key. If a process cannot be watched (no pidfd, too many), its end is not reported."""

    def __init__(self, max_processes: int | None = None) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_processes = int(soft * DESCRIPTOR_SHARE) if max_processes is None else max_processes
        self._epoll = select.epoll()
        self._watched: dict[Key, tuple[int, int]] = {}
        """Pid and pidfd by key."""
        self._keys: dict[int, Key] = {}

    def fileno(self) -> int:
        """A descriptor that is readable while ``take`` would return a key."""
        return self._epoll.fileno()

    def watch(self, key: Key, pid: int) -> None:
        """Watch the process ``pid`` instead of the former process of ``key``."""
        if self._watched.get(key, (0, 0))[0] == pid:
            return
        self.forget(key)
        if len(self._watched) >= self._max_processes:
            return
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            self._watched[key], self._keys[pidfd] = (pid, pidfd), key
            self._epoll.register(pidfd, select.EPOLLIN)

    def forget(self, key: Key) -> None:
        """Stop watching the process of ``key``, if there is one."""
        _, pidfd = self._watched.pop(key, (0, None))
        if pidfd is not None:
            del self._keys[pidfd]
            os.close(pidfd)

    def take(self) -> set[Key]:
        """The keys whose processes have ended since the last call. They are no longer watched."""
        ended = {self._keys[pidfd] for pidfd, _ in self._epoll.poll(0)}
        for key in ended:
            self.forget(key)
        return ended

    def has_ended(self) -> bool:
        """Whether ``take`` would return a key."""
        return bool(self._epoll.poll(0, 1))

    def close(self) -> None:
        """Stop watching all processes."""
        for key in [*self._watched]:
            self.forget(key)
        self._epoll.close()
