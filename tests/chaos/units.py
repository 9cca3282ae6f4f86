# SPDX-License-Identifier: Apache-2.0
"""Starts programs as systemd runs the units of ``etc/systemd``, for hosts without systemd.

As there: ``Restart=always``, ``RestartSec=1``, ``KillMode=mixed`` (SIGTERM to the main process; when that has ended,
SIGKILL to the rest), ``TimeoutStopSec=20``, and ``Type=notify`` with the file descriptor store.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.owned_processes import kill_group

RESTART_S = 1.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
FIRST_DESCRIPTOR = 3
# sd_listen_fds(3): the descriptors are numbered from 3 on, and LISTEN_PID is the pid of the program.
PASS_DESCRIPTORS = f"""
import fcntl, os, sys
first, numbers, names = {FIRST_DESCRIPTOR}, [int(number) for number in sys.argv[1].split(',') if number], sys.argv[2]
copies = [fcntl.fcntl(number, fcntl.F_DUPFD, 512) for number in numbers]
for place, copy in enumerate(copies, first):
    os.dup2(copy, place, inheritable=True)
os.closerange(first + len(copies), 1024)
os.environ.update(LISTEN_FDS=str(len(copies)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(sys.argv[3], sys.argv[3:])
"""


class NotifySocket:
    """Receives what a program sends with sd_notify(3): its status, and the descriptors that it stores, by name.

    It keeps up to ``max_stored`` descriptors (``FileDescriptorStoreMax=``).
    """

    def __init__(self, path: Path, *, max_stored: int = 0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._stored: dict[str, int] = {}
        self._max_stored = max_stored
        self.address = str(path)
        self.status = ''
        threading.Thread(target=self._receive, daemon=True).start()

    def stored(self) -> dict[str, int]:
        """The descriptors by name."""
        return dict(self._stored)

    def close_stored(self) -> None:
        """Close the stored descriptors, as systemd does when a unit is stopped."""
        while self._stored:
            os.close(self._stored.popitem()[1])

    def _receive(self) -> None:
        item = array.array('i').itemsize
        while True:
            text, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(item))
            numbers = array.array('i')
            for _, _, data in ancillary:
                numbers.frombytes(data[: len(data) - len(data) % item])
            fields = dict(line.split('=', 1) for line in text.decode().splitlines())
            self.status = fields.get('STATUS', self.status)
            name = fields.get('FDNAME', '')
            if 'FDSTORE' in fields and numbers and (name in self._stored or len(self._stored) < self._max_stored):
                former, self._stored[name] = self._stored.get(name, -1), numbers.pop()
                if former >= 0:
                    os.close(former)
            elif 'FDSTOREREMOVE' in fields and name in self._stored:
                os.close(self._stored.pop(name))
            for number in numbers:
                os.close(number)


class Unit:
    """One program. ``check`` is called in a loop and starts it again when it has ended."""

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, *, notify: NotifySocket,
        environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.log = log
        self.notify = notify
        self.starts = 0
        self._argv = list(argv)
        self._environ = {**os.environ, **(environ or {})}
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at_s = 0.0

    @property
    def pid(self) -> int:
        """The main process; 0 if it does not run."""
        process = self._process
        return process.pid if process and process.poll() is None else 0

    def children(self) -> list[int]:
        """The workers."""
        try:
            return [int(pid) for pid in Path(f'/proc/{self.pid}/task/{self.pid}/children').read_text().split()]
        except OSError:
            return []

    def kill(self, number: int) -> None:
        """Send a signal to the main process, if it runs."""
        with contextlib.suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, number)

    def kill_children(self, number: int) -> None:
        """Send a signal to the workers."""
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def start(self) -> None:
        """Start it now."""
        with self._lock:
            argv, passed = self._argv, self.notify.stored()
            environ = {**self._environ, 'NOTIFY_SOCKET': self.notify.address}
            self.notify.status = ''
            if passed:
                numbers = ','.join(map(str, passed.values()))
                argv = [sys.executable, '-c', PASS_DESCRIPTORS, numbers, ':'.join(passed), *argv]
            with self.log.open('ab') as log:
                self._process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True,
                    pass_fds=list(passed.values()),
                )  # fmt: skip
            self.starts += 1
            self._start_at_s = 0.0

    def stop(self) -> None:
        """Stop it; it stays stopped until ``start``. The stored descriptors stay for ``restart``."""
        with self._lock:
            process, self._process = self._process, None
            self._start_at_s = 0.0
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        kill_group(process)
        process.wait()

    def restart(self) -> None:
        """``systemctl restart``."""
        self.stop()
        self.start()

    def check(self) -> None:
        """Start it again if it ended by itself at least ``RESTART_S`` ago."""
        with self._lock:
            if self._process is None or self._process.poll() is None:
                return
            now_s = time.monotonic()
            if not self._start_at_s:
                kill_group(self._process)
                self._start_at_s = now_s + RESTART_S
            elif now_s >= self._start_at_s:
                self.start()


class Supervisor:
    """Restarts units until ``close``."""

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, unit: Unit) -> Unit:
        """Start a unit and restart it whenever it ends."""
        unit.start()
        self.units[unit.name] = unit
        return unit

    def _run(self) -> None:
        while not self._is_closed.wait(POLL_S):
            for unit in list(self.units.values()):
                unit.check()

    def close(self) -> None:
        """Stop all units."""
        self._is_closed.set()
        self._thread.join()
        for unit in reversed(self.units.values()):
            unit.stop()
