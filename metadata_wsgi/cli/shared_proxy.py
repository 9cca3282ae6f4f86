# SPDX-License-Identifier: Apache-2.0
"""Starts the keeper and the shared namespace proxy of a host if they do not run, and passes listening sockets to them.

A namespace proxy process for one router costs tens of megabytes. So by default ``metadata-wsgi attach``, and
``quantum-ns-metadata-proxy`` when an L3 agent starts it, use the shared proxy. A router then costs one listening
socket. The L3 agent also needs a process with the router's id: a holder (``bin/metadata-wsgi-haproxy``) of 0.13 MB.

If systemd runs keeper and shared proxy as units, nothing is started here, also while systemd restarts a unit: a second
shared proxy would make each later start of the unit fail. A socket file that an earlier process has left shows that a
unit may be restarting. Then this module waits for a worker before it starts anything. A file from before a reboot
counts too, because an L3 agent may run before systemd has started the unit.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metadata_wsgi.cli import installed_programs
from metadata_wsgi.errors import MetadataError, NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.protocol import SHARED, SHARED_SOCKET
from metadata_wsgi.netns import haproxy, host_lock, proxy_process

LOG = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
POLL_S = 0.1
LOCK_NAME = 'starting_shared_proxy'


class AlreadyRunning(NetnsError):
    """A proxy of the same router or network is already running."""


@dataclass(frozen=True, slots=True)
class SharedProxy:
    """The shared namespace proxy of ``state_path``. ``options`` are added to its command line when it is started."""

    state_path: str
    options: Sequence[str] = ()

    def ensure_running(self) -> None:
        """Start keeper and shared proxy, unless workers are connected. Raises NetnsError if no worker connects."""
        if self._has_workers():
            return
        with host_lock.exclusive(self.state_path, LOCK_NAME):
            if self._has_workers() or (self._may_be_restarting() and self._wait_for_workers()):
                return
            if not self._has_keeper():
                _start(
                    [installed_programs.path('metadata-wsgi'), 'keeper', '--daemonize', '--state-path', self.state_path]
                )
            if not self._has_workers():
                shared = [
                    installed_programs.path('quantum-ns-metadata-proxy'),
                    '--shared',
                    f'--state_path={self.state_path}',
                ]
                _start([*shared, *self.options])
            if not self._wait_for_workers():
                raise NetnsError(f'the shared namespace proxy did not connect to the keeper in {START_TIMEOUT_S:g} s')

    def hand_over(self, kind: str, id_: str, pid_file: str, port: int, hosts: Sequence[str]) -> None:
        """Make the shared proxy serve the network namespace of this process.

        Opens the listening sockets, passes them to the keeper, starts a holder, and writes its pid to ``pid_file``.
        Raises AlreadyRunning if a proxy with this id runs, and NetnsError if the keeper does not accept the sockets.
        """
        running = proxy_process.running_pid(pid_file, id_)
        if running is not None:
            raise AlreadyRunning(f'already running with pid {running} (pid file {pid_file})')
        self.ensure_running()
        spec = [self.state_path, kind, id_, pid_file, str(port), *(host or '*' for host in hosts or [''])]
        done = subprocess.run(
            [haproxy.default_program(), '--attach', *spec], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NetnsError(' '.join(done.stderr.split()) or f'{haproxy.default_program()} failed')

    def _may_be_restarting(self) -> bool:
        """Whether a shared proxy ran on this host, or a keeper ran and does not run now."""
        return _is_socket(os.path.join(self.state_path, SHARED_SOCKET)) or (
            _is_socket(admin_client.socket_path(self.state_path)) and not self._has_keeper()
        )

    def _wait_for_workers(self) -> bool:
        """Wait until a worker is connected to the keeper. Returns False after START_TIMEOUT_S."""
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._has_workers():
            if time.monotonic() > give_up_at:
                return False
            time.sleep(POLL_S)
        return True

    def _has_workers(self) -> bool:
        try:
            with admin_client.connect(self.state_path) as keeper:
                return SHARED in keeper.list('')[1]
        except MetadataError:
            return False

    def _has_keeper(self) -> bool:
        try:
            with admin_client.connect(self.state_path):
                return True
        except MetadataError:
            return False


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _start(argv: Sequence[str]) -> None:
    """Start a program in the host's network namespace, and wait until it is in the background. May raise NetnsError."""
    host = _host_namespace()
    prefix = ['nsenter', f'--net={host}', '--'] if host else []
    # No pipes, because the program's children would keep them open.
    done = subprocess.run(
        [*prefix, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise NetnsError(f'{" ".join(argv)} failed with exit code {done.returncode}; run it to see why')
    LOG.info('Started %s', ' '.join(argv))


def _host_namespace() -> str:
    """The path of the host's network namespace; '' if this process is already in it.

    An L3 agent starts this process in a router's namespace. A keeper that runs in a router's namespace would keep
    the namespace in the kernel after its deletion. So the keeper is started in the namespace of the L3 agent. The L3
    agent is the nearest ancestor process in another network namespace.
    """
    own = _namespace_of('self')
    pid = os.getppid()
    while pid > 0:
        if _namespace_of(str(pid)) not in ('', own):
            return f'/proc/{pid}/ns/net'
        try:
            pid = int(Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()[1])
        except (OSError, ValueError, IndexError):
            return ''
    return ''


def _namespace_of(pid: str) -> str:
    try:
        return os.readlink(f'/proc/{pid}/ns/net')
    except OSError:
        return ''
