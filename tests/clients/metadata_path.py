# SPDX-License-Identifier: Apache-2.0
"""The path of a guest's request through the real programs, with a fault-injecting proxy before each service.

::

    guest 10.1.1.2 --- [router: rules, namespace proxy] --- unix socket --- agent --- proxy --- Nova
                                                                              \\------ proxies --- Keystone, Neutron

Programs outside the namespaces listen on loopback or on sockets in the test's directory.
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

from metadata_wsgi.lab import topology
from metadata_wsgi.netns import namespaces, rtnetlink
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import ROUTER, AttachTarget
from tests.cloud import SHIPPED

BIN = Path(sys.prefix, 'bin')
METADATA = '169.254.169.254'
METADATA_V6 = 'fe80::a9fe:a9fe%eth0'
IFA_F_TENTATIVE = 0x40


@dataclass(frozen=True)
class Guest:
    """A guest and its router, in namespaces with unique names; has the attributes that ``lab.topology`` needs."""

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

    def add_address(self, address: str) -> None:
        """Add a second address, which another port may have in the inventory."""
        with rtnetlink.connect(self.namespace) as links:
            links.addr('add', index=links.link_lookup(ifname='eth0')[0], address=address, prefixlen=24)

    def link_local_is_ready(self) -> bool:
        """Whether it has a link-local address and duplicate address detection is done (RFC 4862, 5.4)."""
        with rtnetlink.connect(self.namespace) as links:
            eth0 = links.link_lookup(ifname='eth0')[0]
            found = [address['flags'] for address in links.get_addr(family=socket.AF_INET6, index=eth0)]
        return bool(found) and not any(flags & IFA_F_TENTATIVE for flags in found)

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        host: str = METADATA,
        address: str = '',
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """(status, headers, body) of one request from inside the guest, on a new connection, with only ``headers``."""

        def inside() -> tuple[int, http.client.HTTPMessage, bytes]:
            connection = http.client.HTTPConnection(host, 80, 30, source_address=(address, 0) if address else None)
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            length = {} if body is None else {'Content-Length': str(len(body))}
            sent = {'Host': f'[{host.partition("%")[0]}]' if ':' in host else host, **length, **(headers or {})}
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            try:
                return response.status, response.headers, response.read()
            finally:
                connection.close()

        return namespaces.run_in(self.namespace, inside)


class MetadataPath:
    """Starts the programs from the guest to the services; their files are in ``directory``."""

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
        """Write the configuration file, which all programs share."""
        values = {'state_path': self.directory, 'metadata_peer_users': 'nobody', **options}
        lines = [f'{name} = {value}' for name, value in values.items()]
        self.conf_file.write_text('\n'.join(['[DEFAULT]', *lines, sections, '']))

    def start_nova(self) -> int:
        """Serve the pipeline ``nova`` with gunicorn; its port."""
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port: int = probe.getsockname()[1]
        self._start(
            'gunicorn',
            *('--paste', f'{SHIPPED}#nova', '--paste-global', f'config_file={self.conf_file}'),
            *('--worker-class', 'gevent', '--no-control-socket', '--bind', f'127.0.0.1:{port}'),
        )
        self.wait_until(lambda: _accepts_connections(socket.AF_INET, ('127.0.0.1', port)), 'gunicorn')
        return port

    def kill_agent(self) -> None:
        """Kill the agent if one is running."""
        if self._agent is not None:
            self._kill(self._agent)

    def start_agent(self) -> None:
        """Start the agent, or restart it so that its caches and connections are empty."""
        self.kill_agent()
        path = self.directory / 'metadata_proxy'
        self._agent = self._start('quantum-metadata-agent', '--config-file', str(self.conf_file))
        self.wait_until(lambda: _rejects_unidentified_request(str(path)), 'quantum-metadata-agent')

    def attach(self) -> None:
        """Make the namespaces, add the redirect rules, start the namespace proxy."""
        topology.make_guest(self.guest)  # type: ignore[arg-type]
        self._attachments.attach(self._place)

    def remove(self) -> None:
        """Detach, kill the programs and delete the namespaces; missing ones are ignored."""
        if namespaces.exists(self.guest.gateway_namespace):
            self._attachments.detach(self._place)
        for process in self._processes:
            self._kill(process)
        for name in (self.guest.namespace, self.guest.gateway_namespace):
            if namespaces.exists(name):
                subprocess.run(['ip', 'netns', 'delete', name], check=True)

    def log_text(self, logs: str = '*.log', max_chars: int = 3000) -> str:
        """The end of each program's log whose name matches the pattern ``logs``."""
        return '\n'.join(f'{log.name}: {log.read_text()[-max_chars:]}' for log in sorted(self.directory.glob(logs)))

    def _start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        with (self.directory / f'{name}.log').open('ab') as log:
            process = subprocess.Popen(
                [str(BIN / name), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the program and its workers, which are one process group."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def wait_until(self, condition: Callable[[], bool], name: str, timeout_s: float = 60.0) -> None:
        """Until ``true()`` is; fails where that takes longer than ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f'{name} does not respond: {self.log_text()}'
            time.sleep(0.05)


def _accepts_connections(family: int, address: object) -> bool:
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def _rejects_unidentified_request(path: str) -> bool:
    """Whether the agent is up: it responds 400 to a request without router or network id."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
            probe.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
            return probe.recv(100).startswith(b'HTTP/1.1 400')
        except OSError:
            return False
