# SPDX-License-Identifier: Apache-2.0
"""The way that a guest's request takes, of the real programs, with an injector before each service behind it.

::

    guest 10.1.1.2 --- [router: rules, namespace proxy] --- unix socket --- agent --- injector --- Nova
                                                                              \\------ injectors --- Keystone, Neutron

What is not in a namespace listens on loopback or under the test's directory.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute

from metadata_wsgi.lab import topology
from metadata_wsgi.netns import namespaces
from metadata_wsgi.netns.attach import Attacher, ProxyCommand
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import ROUTER, AttachTarget
from tests.cloud import SHIPPED

BIN = Path(sys.prefix, 'bin')
METADATA = '169.254.169.254'
METADATA_V6 = 'fe80::a9fe:a9fe%eth0'
IFA_F_TENTATIVE = 0x40


@dataclass(frozen=True)
class Guest:
    """A guest behind a router, in namespaces that no other test has; what the lab's topology asks for."""

    router_id: str
    mac: str
    unique: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    routed: bool = True
    interface: str = ''
    """The name of the gateway's interface, where it counts."""

    @property
    def namespace(self) -> str:
        return f'client-{self.unique}'

    @property
    def gateway_namespace(self) -> str:
        return f'client-router-{self.unique}'

    @property
    def gateway_interface(self) -> str:
        return self.interface or f'qr-{self.unique}'

    def also_has(self, address: str) -> None:
        """Give it a second address, from which it can ask as somebody else."""
        with IPRoute(netns=self.namespace) as links:
            links.addr('add', index=links.link_lookup(ifname='eth0')[0], address=address, prefixlen=24)

    def has_settled(self) -> bool:
        """Whether its link-local address is there and no other one can have it (RFC 4862, 5.4): only then it asks."""
        with IPRoute(netns=self.namespace) as links:
            eth0 = links.link_lookup(ifname='eth0')[0]
            found = [address['flags'] for address in links.get_addr(family=socket.AF_INET6, index=eth0)]
        return bool(found) and not any(flags & IFA_F_TENTATIVE for flags in found)

    def ask(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        host: str = METADATA,
        address: str = '',
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """(status, headers, body) of one request from inside it, on a new connection, with only these headers."""

        def inside() -> tuple[int, http.client.HTTPMessage, bytes]:
            connection = http.client.HTTPConnection(host, 80, 30, source_address=(address, 0) if address else None)
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            length = {} if body is None else {'Content-Length': str(len(body))}
            said = {'Host': f'[{host.partition("%")[0]}]' if ':' in host else host, **length, **(headers or {})}
            for name, value in said.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            try:
                return answer.status, answer.headers, answer.read()
            finally:
                connection.close()

        return namespaces.run_in(self.namespace, inside)


class Way:
    """From the guest to the services; what the programs write lies in ``directory``."""

    def __init__(self, directory: Path, guest: Guest) -> None:
        self.directory = directory
        self.guest = guest
        self.conf_file = directory / 'metadata_agent.ini'
        self._processes: list[subprocess.Popen[bytes]] = []
        self._agent: subprocess.Popen[bytes] | None = None
        proxy = ProxyCommand(
            program=str(BIN / 'quantum-ns-metadata-proxy'),
            state_path=str(directory),
            socket=str(directory / 'metadata_proxy'),
            log_dir=str(directory),
        )
        self._attachments = Attacher(SubprocessRunner(), proxy=proxy)
        self._place = AttachTarget.of(ROUTER, guest.router_id, guest.gateway_namespace)

    def configure(self, options: Mapping[str, object], sections: str = '') -> None:
        """Write the configuration file of all parts."""
        lines = [
            f'{name} = {value}'
            for name, value in {'state_path': self.directory, 'metadata_peer_users': 'nobody', **options}.items()
        ]
        self.conf_file.write_text('\n'.join(['[DEFAULT]', *lines, sections, '']))

    def start_nova(self) -> int:
        """Serve the pipeline ``nova`` and return its port."""
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port: int = probe.getsockname()[1]
        self._start(
            'gunicorn',
            *('--paste', f'{SHIPPED}#nova', '--paste-global', f'config_file={self.conf_file}'),
            *('--worker-class', 'gevent', '--no-control-socket', '--bind', f'127.0.0.1:{port}'),
        )
        self.wait(lambda: _connects(socket.AF_INET, ('127.0.0.1', port)), 'gunicorn')
        return port

    def end_agent(self) -> None:
        """Kill the agent, if there is one."""
        if self._agent is not None:
            self._end(self._agent)

    def start_agent(self) -> None:
        """Start the agent, or another one in its place: it has asked nobody anything yet."""
        self.end_agent()
        path = self.directory / 'metadata_proxy'
        self._agent = self._start('quantum-metadata-agent', '--config-file', str(self.conf_file))
        self.wait(lambda: _refuses_nobody(str(path)), 'quantum-metadata-agent')

    def attach(self) -> None:
        """Make the namespaces, lay the rules, start the namespace proxy."""
        topology.make_guest(self.guest)  # type: ignore[arg-type]
        self._attachments.attach(self._place)

    def remove(self) -> None:
        """Take everything away, whatever there is of it."""
        if namespaces.exists(self.guest.gateway_namespace):
            self._attachments.detach(self._place)
        for process in self._processes:
            self._end(process)
        for name in (self.guest.namespace, self.guest.gateway_namespace):
            if namespaces.exists(name):
                subprocess.run(['ip', 'netns', 'delete', name], check=True)

    def said(self, logs: str = '*.log', most: int = 3000) -> str:
        """The end of each program's log, or of those that fit a pattern."""
        return '\n'.join(f'{log.name}: {log.read_text()[-most:]}' for log in sorted(self.directory.glob(logs)))

    def _start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        with (self.directory / f'{name}.log').open('ab') as log:
            process = subprocess.Popen(
                [str(BIN / name), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to its process group, which it leads: nothing of it may answer any more."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def wait(self, true: Callable[[], bool], name: str, patience_s: float = 30.0) -> None:
        """Until ``true()`` is; fails where that takes longer than ``patience_s``."""
        give_up_at = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < give_up_at, f'{name} does not answer: {self.said()}'
            time.sleep(0.05)


def _connects(family: int, address: object) -> bool:
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def _refuses_nobody(path: str) -> bool:
    """Whether the pipeline on the socket says 400 to a request that does not say who asks."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
            probe.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
            return probe.recv(100).startswith(b'HTTP/1.1 400')
        except OSError:
            return False
