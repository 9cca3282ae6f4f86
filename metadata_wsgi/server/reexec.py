# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1: the master executes the installed program again, in the same process; its workers serve until new ones do.

So an upgrade has no gap, where a restart has one of seconds, longer on a busy host. haproxy's master does the same. The
process id stays, so systemd and the workers notice nothing.

The new program gets the listening sockets as systemd passes them (``net.sd_notify.inherited``), and the process ids of
the workers in a variable. When its own workers serve, it ends the former workers. If it does not start, the process
ends with its error, the former workers end too, and systemd starts the unit again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterable, Mapping, MutableMapping

from metadata_wsgi.net.sd_notify import FIRST_DESCRIPTOR

FORMER_WORKERS = 'METADATA_WSGI_FORMER_WORKERS'
FREE_DESCRIPTOR = 256
"""The sockets are moved above this number first, so that none overwrites another."""


def execute_again(sockets: Mapping[str, int], workers: Iterable[int], environ: Mapping[str, str]) -> None:
    """Replace this process. ``sockets``: descriptors by name; ``environ``: variables that the program had removed."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FREE_DESCRIPTOR) for descriptor in sockets.values()]
    for number, descriptor in enumerate(moved, FIRST_DESCRIPTOR):
        os.dup2(descriptor, number, inheritable=True)
    variables = {
        'LISTEN_PID': str(os.getpid()),
        'LISTEN_FDS': str(len(sockets)),
        'LISTEN_FDNAMES': ':'.join(sockets),
        FORMER_WORKERS: ','.join(str(pid) for pid in workers),
    }
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, **environ, **variables})  # noqa: S606


def former_workers(environ: MutableMapping[str, str] = os.environ) -> list[int]:
    """The process ids of the workers of the former program; the variable is removed from ``environ``."""
    return [int(text) for text in environ.pop(FORMER_WORKERS, '').split(',') if text.isdigit()]


def end(pids: Iterable[int]) -> None:
    """Send SIGTERM to the processes that are still children: another process may have the number by now."""
    for pid in pids:
        if _is_child(pid):
            os.kill(pid, signal.SIGTERM)


def _is_child(pid: int) -> bool:
    """Whether it is a child of this process that runs. Not read from /proc, where workers may be hidden from us."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
