# SPDX-License-Identifier: Apache-2.0
"""Takes over the listening sockets of the haproxies that a Neutron agent started, or starts haproxy again.

Because of these facts no connection is refused:

- pidfd_getfd(2), Linux 5.6, copies a descriptor of another process. A socket and its accept queue stay open as long as
  one process has a descriptor.
- After SIGUSR1 haproxy finishes the requests in progress and ends.
- haproxy binds with SO_REUSEPORT, so a new haproxy can listen on a port while our process still listens.
- ``net.ipv4.tcp_migrate_req`` (Linux 5.14): when a listening socket is closed, the kernel moves the connections in its
  accept queue to another socket on the same port.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, proxy_process
from metadata_wsgi.netns.runner import Runner, SubprocessRunner

SUFFIX = '.pid.haproxy'
TCP_MIGRATE_REQ = '/proc/sys/net/ipv4/tcp_migrate_req'
START_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """The running process that one of Neutron's pid files names.

    ``is_haproxy``: True for a haproxy, False for our holder, which uses the same pid file.
    """

    id: str
    pid: int
    pid_file: str
    is_haproxy: bool


def running(state_path: str) -> list[Proxy]:
    """The running metadata proxies of an agent with this state path, sorted by id."""
    found = []
    for file in sorted(Path(state_path, 'external', 'pids').glob('*' + SUFFIX)):
        id_ = file.name.removesuffix(SUFFIX)
        pid = proxy_process.running_pid(str(file), id_)
        if pid is not None:
            found.append(Proxy(id_, pid, str(file), not proxy_process.is_holder(pid)))
    return found


class Conversion:
    """Replaces haproxies by holders, and holders by haproxies. ``program`` is the path of ``metadata-wsgi-haproxy``."""

    def __init__(self, state_path: str, program: str, runner: Runner | None = None) -> None:
        self._state_path = state_path
        self._program = program
        self._run = runner or SubprocessRunner()
        self._shim = _loaded(program)

    def adopt(self, proxy: Proxy) -> bool:
        """Register the haproxy's sockets at the keeper, start a holder, end the haproxy. Returns False if ``proxy`` is
        a holder.

        Raises NetnsError if the configuration is not from Neutron, or if the keeper or its workers do not run. Then the
        haproxy continues to serve.
        """
        if not proxy.is_haproxy:
            return False
        pidfd = self._opened(proxy)
        try:
            spec = self._spec(_configuration(proxy.pid))
            namespace = namespaces.name_of(proxy.pid)
            sockets = proxy_process.copy_proxy_listeners(proxy.pid_file, proxy.id, spec.port)
            try:
                ordered = [_listening_at(host, sockets) for host in spec.hosts]
                descriptors = ','.join(str(sock.fileno()) for sock in ordered)
                self._run(
                    [*_tag(proxy.id), self._program, '--hold', descriptors, *spec.argv()],
                    namespace=namespace,
                    pass_fds=[sock.fileno() for sock in ordered],
                )
            finally:
                for sock in sockets:
                    sock.close()
            _send_signal(pidfd, signal.SIGUSR1)
        finally:
            os.close(pidfd)
        return True

    def give_back(self, proxy: Proxy, detach: Callable[[str], bool]) -> bool:
        """Start haproxy with Neutron's configuration and end the holder. Returns whether anything was changed.

        When haproxy listens, ``detach(id)`` is called. ``detach`` makes the keeper close the sockets of this id, and
        returns whether there were any. If haproxy does not start, raises NetnsError, and the holder and the keeper's
        sockets stay. If the keeper does not respond, raises NetnsError although haproxy serves: a worker may still
        accept on the socket. Repeat ``give_back`` when the keeper runs.
        """
        if proxy.is_haproxy:
            try:
                return detach(proxy.id)
            except NetnsError:
                return False  # the keeper may have been stopped after an earlier give_back
        holder = self._opened(proxy)
        try:
            configuration = self._configuration_of(proxy.id)
            namespace = namespaces.name_of(proxy.pid)
            real = self._shim.real_haproxy()
            if real is None:
                raise NetnsError('no haproxy is installed')
            if namespace is None:
                raise NetnsError(f'{proxy.id}: its network namespace has no name under {namespaces.DIRECTORY}')
            namespaces.run_in(namespace, _migrate_requests)
            self._run([*_tag(proxy.id), real, '-f', configuration], namespace=namespace)
            self._wait_for_haproxy(proxy)
            # The holder ends before the workers close their copies. Otherwise it would have the last copy of a socket
            # on which no process accepts.
            _send_signal(holder, signal.SIGKILL)
            detach(proxy.id)
        finally:
            os.close(holder)
        return True

    def _wait_for_haproxy(self, proxy: Proxy) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        # A new holder is not enough: the program may have been metadata-wsgi-haproxy in a wrapper.
        while (pid := proxy_process.running_pid(proxy.pid_file, proxy.id)) is None or proxy_process.is_holder(pid):
            if time.monotonic() > give_up_at:
                raise NetnsError(f'{proxy.pid_file}: haproxy did not write its pid within {START_TIMEOUT_S:g} s')
            time.sleep(0.05)

    def _configuration_of(self, id_: str) -> str:
        for kind in ('ns-metadata-proxy', 'ovn-metadata-proxy'):
            path = os.path.join(self._state_path, kind, f'{id_}.conf')
            if os.path.exists(path):
                return path
        raise NetnsError(f'{id_}: Neutron has no configuration for its haproxy under {self._state_path}')

    def _spec(self, configuration: str) -> Any:
        try:
            return self._shim.from_configuration(configuration)
        except (self._shim.NotOurs, OSError, ValueError) as error:
            raise NetnsError(str(error) or f'{configuration} is not a configuration of a Neutron agent') from error

    def _opened(self, proxy: Proxy) -> int:
        """A pidfd of the proxy's process. Raises NetnsError if the process has ended."""
        try:
            pidfd = os.pidfd_open(proxy.pid)
        except OSError as error:
            raise NetnsError(f'{proxy.id}: its process {proxy.pid} has ended meanwhile') from error
        if proxy.id.encode() not in _command_line(proxy.pid):
            os.close(pidfd)
            raise NetnsError(f'{proxy.id}: its process has ended, and pid {proxy.pid} is another process now')
        return pidfd


def default_program() -> str:
    """The path of ``metadata-wsgi-haproxy``, installed or in a checkout. Raises NetnsError if it does not exist."""
    for path in (
        os.path.join(sys.prefix, 'libexec', 'metadata_wsgi', 'metadata-wsgi-haproxy'),
        str(Path(__file__).resolve().parents[2] / 'bin' / 'metadata-wsgi-haproxy'),
    ):
        if os.access(path, os.X_OK):
            return path
    raise NetnsError('metadata-wsgi-haproxy is not installed')


def _tag(id_: str) -> list[str]:
    # Neutron starts haproxy with this variable, and Neutron's kill scripts search for it.
    return ['env', f'PROCESS_TAG=haproxy-{id_}']


def _command_line(pid: int) -> bytes:
    try:
        return Path(f'/proc/{pid}/cmdline').read_bytes()
    except OSError:
        return b''


def _configuration(pid: int) -> str:
    words = _command_line(pid).split(b'\0')
    if b'-f' not in words[:-1]:
        raise NetnsError(f'process {pid} has no configuration file in its command line')
    return os.fsdecode(words[words.index(b'-f') + 1])


def _listening_at(host: str, sockets: list[socket.socket]) -> socket.socket:
    wanted = (host.partition('%')[0],) if host else ('::', '0.0.0.0')  # noqa: S104 (compared, not bound)
    for sock in sockets:
        if sock.getsockname()[0].partition('%')[0] in wanted:
            return sock
    raise NetnsError(f'haproxy does not listen at {host or "all addresses"}')


def _migrate_requests() -> None:
    # Before Linux 5.14 the file does not exist, and in a container it may be read-only. Then the connections in the
    # accept queue are reset, and their clients repeat the request.
    with contextlib.suppress(OSError):
        Path(TCP_MIGRATE_REQ).write_text('1', encoding='ascii')


def _send_signal(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        signal.pidfd_send_signal(pidfd, number)


def _loaded(program: str) -> Any:
    # The import system is not used, because it would write a cache file beside the program.
    module = types.ModuleType('metadata_wsgi_haproxy')
    module.__file__ = program
    exec(compile(Path(program).read_bytes(), program, 'exec', optimize=0), module.__dict__)  # noqa: S102 (our own program)
    return module
