# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1: the master executes the installed program again, in the same process. Its workers continue to serve.

So requests are served during the whole upgrade. In a restart no worker would serve for seconds, and longer on a busy
host. The process id does not change, so systemd still sees the same service, and the workers still have the same
parent. haproxy's master is upgraded in the same way.

First the installed program is started in another process, where it only loads its configuration and ends (``CHECK``).
If that fails, the master continues with its own program. For example, the configuration file has a fault that was not
reloaded yet, or a library is missing.

The new program gets the listening sockets in the form in which systemd passes sockets (``net.sd_notify.inherited``),
and the process ids of the workers in an environment variable. When its own workers serve, the new program ends the
former workers. If the new program does not start although the check succeeded, the process ends with an error. Then the
former workers end too, and systemd starts the unit again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager

from metadata_wsgi import limits
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.net.sd_notify import FIRST_DESCRIPTOR

FORMER_WORKERS = 'METADATA_WSGI_FORMER_WORKERS'
CHECK = 'METADATA_WSGI_CHECK'
"""If this environment variable is set, the program loads its configuration and ends. It opens no socket."""
BLOCKED = frozenset({
    signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT,
})  # fmt: skip
"""These signals are blocked until the new program handles them. Their default action would end it at once, and systemd
would then kill the workers with their requests in progress. Pending signals and the mask survive execve(2)."""
FREE_DESCRIPTOR = 256
"""The sockets are first copied to descriptors with this or a higher number, so that no copy overwrites a socket."""


def is_check(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process only checks that the program can start."""
    return CHECK in environ


def check_installed_program() -> None:
    """Start the installed program as a check, and wait for its end. Raises MetadataError if it cannot start.

    Call it in a child process (``config_check.run_in_child``), because it changes a signal handler.
    """
    # The master's handler would take the exit status of the program.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        done = subprocess.run(
            _words(),
            env={**os.environ, CHECK: '1'},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=limits.CONFIG_CHECK_TIMEOUT_S - 5,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MetadataError(str(error)) from error
    if done.returncode:
        lines = done.stderr.decode(errors='backslashreplace').split('\n')
        last = next((line for line in reversed(lines) if line.strip()), 'no message')
        raise MetadataError(f'exit status {done.returncode}: {last}')


def _words() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def execute_again(sockets: Mapping[str, int], workers: Iterable[int], environ: Mapping[str, str]) -> None:
    """Replace the program of this process. ``sockets``: descriptors by name. ``workers``: pids of the workers.

    ``environ``: variables that this program had removed from its environment, and that the new program needs.
    The new program must call ``unblock_signals``. Raises OSError if the program cannot be executed. Then every
    descriptor is as before.
    """
    variables = {
        'LISTEN_PID': str(os.getpid()),
        'LISTEN_FDS': str(len(sockets)),
        'LISTEN_FDNAMES': ':'.join(sockets),
        FORMER_WORKERS: ','.join(str(pid) for pid in workers),
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        with _passed_from(FIRST_DESCRIPTOR, sockets.values()):
            os.execve(sys.executable, _words(), {**os.environ, **environ, **variables})  # noqa: S606
    finally:
        unblock_signals()


def unblock_signals() -> None:
    """Called when the signal handlers are set: a signal that has arrived since ``execute_again`` is handled now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


@contextmanager
def _passed_from(first: int, descriptors: Iterable[int]) -> Iterator[None]:
    """Copy ``descriptors`` to the numbers ``first``, ``first`` + 1, ... At the end these numbers are as before."""
    with ExitStack() as restored:
        moved = []
        for descriptor in descriptors:
            moved.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FREE_DESCRIPTOR))
            restored.callback(os.close, moved[-1])
        for number, descriptor in enumerate(moved, first):
            try:
                before = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FREE_DESCRIPTOR)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                restored.callback(os.close, number)
            else:
                restored.callback(os.close, before)
                restored.callback(os.dup2, before, number, os.get_inheritable(number))
            os.dup2(descriptor, number, inheritable=True)
        yield


def former_workers(environ: MutableMapping[str, str] = os.environ) -> list[int]:
    """The process ids of the former program's workers, from a variable that is then removed from ``environ``."""
    return [int(text) for text in environ.pop(FORMER_WORKERS, '').split(',') if text.isdigit()]


def end(pids: Iterable[int]) -> None:
    """Send SIGTERM to the processes of ``pids`` that are still children. An ended child's pid may have been reused."""
    for pid in running(pids):
        os.kill(pid, signal.SIGTERM)


def running(pids: Iterable[int]) -> list[int]:
    """The processes of ``pids`` that are still running children."""
    return [pid for pid in pids if _is_child(pid)]


def _is_child(pid: int) -> bool:
    """Whether ``pid`` is a running child of this process. Not read from /proc, because /proc may hide workers."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
