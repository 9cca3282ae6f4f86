# SPDX-License-Identifier: Apache-2.0
"""Takes over the listening sockets of the haproxies that a Neutron agent started, and returns them.

Facts: a descriptor of another process is copied by pidfd_getfd(2), Linux 5.6; the kernel's socket, with its queue of
connections, stays open while one process has it. haproxy ends at SIGUSR1 after the requests in progress. It binds with
SO_REUSEPORT, so a new haproxy may listen beside us; with ``net.ipv4.tcp_migrate_req`` (Linux 5.14) the kernel moves
the connections that wait in a socket which is closed to another one of the same port. So no client is refused.
"""

from __future__ import annotations

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
START_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """The process that one of Neutron's pid files names.

    ``is_haproxy``: True for a haproxy, False for our holder, which uses the same pid file.
    """

    id: str
    pid: int
    pid_file: str
    is_haproxy: bool


def running(state_path: str) -> list[Proxy]:
    """The metadata proxies that run for an agent with this state path, by id. Stale pid files are left out."""
    found = []
    for file in sorted(Path(state_path, 'external', 'pids').glob('*' + SUFFIX)):
        id_ = file.name.removesuffix(SUFFIX)
        pid = proxy_process.running_pid(str(file), id_)
        if pid is not None:
            found.append(Proxy(id_, pid, str(file), not proxy_process.is_holder(pid)))
    return found


class Conversion:
    """Converts proxies of one host in both directions. ``program`` is the path of ``metadata-wsgi-haproxy``."""

    def __init__(self, state_path: str, program: str, runner: Runner | None = None) -> None:
        self._state_path = state_path
        self._program = program
        self._run = runner or SubprocessRunner()
        self._shim = _loaded(program)

    def adopt(self, proxy: Proxy) -> bool:
        """Have the keeper serve what this haproxy serves, and end the haproxy; False if it is no haproxy any more.

        Raises NetnsError where its configuration is not one of Neutron's, or the keeper or its workers are not there;
        the haproxy then goes on.
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
            signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        finally:
            os.close(pidfd)
        return True

    def give_back(self, proxy: Proxy, detach: Callable[[str], object]) -> bool:
        """Start haproxy again with Neutron's configuration and have the keeper close its sockets; False: it runs.

        ``detach`` is called with the id when haproxy listens. Raises NetnsError, and changes nothing, where haproxy
        does not start.
        """
        if proxy.is_haproxy:
            return False
        holder = self._opened(proxy)
        try:
            configuration = self._configuration_of(proxy.id)
            namespace = namespaces.name_of(proxy.pid)
            real = next(self._shim.programs(), None)
            if real is None:
                raise NetnsError('no haproxy is installed: nothing can take the sockets back')
            if namespace is None:
                raise NetnsError(f'{proxy.id}: its network namespace has no name under {namespaces.DIRECTORY}')
            namespaces.run_in(namespace, _migrate_requests)
            self._run([*_tag(proxy.id), real, '-f', configuration], namespace=namespace)
            self._wait_for_haproxy(proxy)
            # The holder first: the last copy of the socket must be that of the workers, which accept from it.
            signal.pidfd_send_signal(holder, signal.SIGKILL)
            detach(proxy.id)
        finally:
            os.close(holder)
        return True

    def _wait_for_haproxy(self, proxy: Proxy) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while proxy_process.running_pid(proxy.pid_file, proxy.id) in (None, proxy.pid):
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
            raise NetnsError(str(error) or f'{configuration} is not one of a Neutron agent') from error

    def _opened(self, proxy: Proxy) -> int:
        """A pidfd of the process, if it still is that proxy's."""
        try:
            pidfd = os.pidfd_open(proxy.pid)
        except OSError as error:
            raise NetnsError(f'{proxy.id}: its process {proxy.pid} has ended meanwhile') from error
        if proxy.id.encode() not in _command_line(proxy.pid):
            os.close(pidfd)
            raise NetnsError(f'{proxy.id}: process {proxy.pid} is another one now')
        return pidfd


def default_program() -> str:
    """Where ``metadata-wsgi-haproxy`` is: installed beside the package, or in a checkout. Raises NetnsError."""
    for path in (
        os.path.join(sys.prefix, 'libexec', 'metadata_wsgi', 'metadata-wsgi-haproxy'),
        str(Path(__file__).resolve().parents[2] / 'bin' / 'metadata-wsgi-haproxy'),
    ):
        if os.access(path, os.X_OK):
            return path
    raise NetnsError('metadata-wsgi-haproxy is not installed')


def _tag(id_: str) -> list[str]:
    # As Neutron starts it; its kill scripts look for the variable.
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
    Path('/proc/sys/net/ipv4/tcp_migrate_req').write_text('1', encoding='ascii')


def _loaded(program: str) -> Any:
    # Not by the import system, which would write a cache file beside the program.
    module = types.ModuleType('metadata_wsgi_haproxy')
    module.__file__ = program
    exec(compile(Path(program).read_bytes(), program, 'exec'), module.__dict__)  # noqa: S102 (our own program)
    return module
