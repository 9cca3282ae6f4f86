# SPDX-License-Identifier: Apache-2.0
"""Finds the process that listens on a TCP port in the caller's network namespace, for the message "port in use".

Facts from proc_net_tcp(5) and proc_pid_fd(5): /proc/thread-self/net lists the sockets in the network namespace of the
calling thread, each with its inode number. If a process has a socket open, its fd directory has a link
``socket:[inode]``. Only root and the user of that process may read the directory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

LISTEN = '0A'
NETNS_DIRECTORY = '/run/netns'

OWN_PROGRAMS = (
    'quantum-ns-metadata-proxy', 'quantum-metadata-agent', 'metadata-wsgi', 'metadata_wsgi.cli',
    'neutron-metadata-agent-wsgi',
)  # fmt: skip
"""The programs of this package. The command line of each of their processes contains one of these names, even after
gunicorn has changed it."""


@dataclass(frozen=True, slots=True)
class ListeningProcess:
    """A process that listens on a port. ``is_own``: it is a program of this package."""

    pid: int
    program: str
    is_own: bool

    def message(self, port: int, namespace: str) -> str:
        """A sentence for the operator. ``namespace`` is the name of the namespace, '' if it has no name."""
        return (
            f'metadata_port: port {port} in {namespace or "this network namespace"} is used by pid {self.pid} '
            f'({self.program}): stop it, or use --metadata-port {port + 1}'
        )


def find(port: int) -> ListeningProcess | None:
    """The process that listens on ``port`` in this thread's network namespace; None if none is visible.

    If several processes share the socket (a master and its workers), the process with the lowest pid is returned.
    """
    links = {f'socket:[{inode}]' for inode in _inodes(port)}
    if not links:
        return None
    for pid in sorted(int(name) for name in os.listdir('/proc') if name.isdecimal()):
        if _has_open(pid, links):
            return ListeningProcess(pid, _read(pid, 'comm').strip() or 'unknown', _is_own(pid))
    return None


def namespace_name() -> str:
    """The name of this thread's network namespace under /run/netns, for example ``qrouter-...``; '' without a name."""
    own = os.stat('/proc/thread-self/ns/net')
    with contextlib.suppress(OSError), os.scandir(NETNS_DIRECTORY) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.path.samestat(own, os.stat(entry.path)):
                    return entry.name
    return ''


def _inodes(port: int) -> Iterator[str]:
    for name in ('tcp', 'tcp6'):
        with contextlib.suppress(OSError), open(f'/proc/thread-self/net/{name}', encoding='ascii') as table:
            for line in list(table)[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(':')[2], 16) == port:
                    yield fields[9]


def _has_open(pid: int, links: set[str]) -> bool:
    with contextlib.suppress(OSError), os.scandir(f'/proc/{pid}/fd') as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) in links:
                    return True
    return False


def _is_own(pid: int) -> bool:
    words = _read(pid, 'cmdline').replace('\0', ' ')
    return any(program in words for program in OWN_PROGRAMS)


def _read(pid: int, name: str) -> str:
    try:
        with open(f'/proc/{pid}/{name}', encoding='utf-8', errors='replace') as file:
            return file.read()
    except OSError:
        return ''
