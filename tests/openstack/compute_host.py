# SPDX-License-Identifier: Apache-2.0
"""A compute host: the guests' namespaces, the agent, and a namespace proxy for each attached guest."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metadata_wsgi.lab import topology
from metadata_wsgi.netns import namespaces
from tests.clients.metadata_path import BIN, METADATA, Guest
from tests.openstack.deployment import Deployment
from tests.openstack.seed import CLAIMED, GHOST, Admin
from tests.openstack.services import REGION, SHARED_SECRET

REPEAT_FOR_S = 120.0


@dataclass(frozen=True)
class Response:
    """The response that curl received in the guest; ``status`` is 0 without a response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ComputeHost:
    """Runs the agent, and makes and attaches guests when a test first needs them."""

    def __init__(self, directory: Path, openstack: Deployment) -> None:
        self.openstack = openstack
        self.conf_file = directory / 'metadata_agent.ini'
        self._directory = directory
        self._guests: dict[str, Guest] = {}
        self._agent: subprocess.Popen[bytes] | None = None
        self._log = directory / 'agent.log'

    def grizzly_configuration(self, user: str = 'service', **options: object) -> str:
        """Text of a configuration file with the options of Grizzly, for a user of the project ``service``."""
        services = self.openstack.services
        return self.configuration({
            'auth_url': services.keystone.replace('/v3', '/v2.0'),
            'auth_region': REGION,
            'admin_user': user,
            'admin_password': f'password of {user}',
            'admin_tenant_name': 'service',
            **options,
        })  # fmt: skip

    def configuration(self, options: Mapping[str, object], sections: str = '') -> str:
        """Text of a configuration file with ``options`` and those that every agent here needs."""
        values = {
            'state_path': self._directory,
            'nova_metadata_ip': '127.0.0.1',
            'nova_metadata_port': self.openstack.services.port('nova'),
            'metadata_proxy_shared_secret': SHARED_SECRET,
            'metadata_workers': 1,
            'metadata_peer_users': 'nobody',
            **options,
        }
        return '\n'.join(['[DEFAULT]', *(f'{name} = {value}' for name, value in values.items()), sections, ''])

    def restart_agent(self, configuration: str) -> None:
        """Write the configuration and restart the agent, so that it has no token and empty caches."""
        self.configure(configuration)
        self._end_agent()
        with self._log.open('wb') as log:
            self._agent = subprocess.Popen(
                [BIN / 'quantum-metadata-agent', '--config-file', self.conf_file],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + REPEAT_FOR_S
        while not self._listens():
            assert time.monotonic() < deadline, f'the agent does not respond: {self.log_text()}'
            assert self._agent.poll() is None, f'the agent ended: {self.log_text()}'
            time.sleep(0.05)

    def configure(self, configuration: str) -> None:
        """Write the configuration file of the agent and ``metadata-wsgi``."""
        self.conf_file.write_text(configuration)
        self.conf_file.chmod(0o600)

    def guest(self, name: str) -> Guest:
        """The guest of the seed's instance ``name``; made and attached (``metadata-wsgi attach``) at the first call."""
        if name not in self._guests:
            known = self.openstack.seed[name]
            mac = known.mac or 'fa:16:3e:00:00:01'
            routed = bool(known.router_id)
            interface = self._router_interface(known.router_id, known.network_id) if routed else ''
            guest = self._guests[name] = Guest(
                known.router_id or known.network_id, mac, routed=routed, interface=interface
            )
            topology.make_guest(guest)  # type: ignore[arg-type]
            if name == 'a':
                guest.add_address(GHOST)
            if name == 'b':
                guest.add_address(CLAIMED)
            which = ('--router-id',) if routed else ('--interface', guest.gateway_interface, '--network-id')
            self._attachment('attach', '--mode=process', *which, guest.router_id, '--log-dir', str(self._directory))
        return self._guests[name]

    def _router_interface(self, router_id: str, network_id: str) -> str:
        """The interface of the router on the network, as the L3 agent names it."""
        admin = Admin(self.openstack.services)
        ports = admin.neutron('GET', f'ports?device_id={router_id}&network_id={network_id}&fields=id')['ports']
        admin.close()
        return f'qr-{ports[0]["id"][:11]}'

    def curl(self, name: str, path: str, *, host: str = METADATA, source: str = '') -> Response:
        """Run curl in the guest ``name``."""
        words = ['--silent', '--show-error', '--noproxy', '*', '--globoff', '--path-as-is', '--max-time', '30']
        words += ['--interface', source] if source else []
        argv = ['ip', 'netns', 'exec', self.guest(name).namespace, 'curl', *words, '--dump-header', '/dev/stderr']
        done = subprocess.run([*argv, f'http://{host}{path}'], capture_output=True)
        status, *lines = done.stderr.decode('latin-1').splitlines() or ['']
        if not status.startswith('HTTP/'):
            return Response(0, {}, done.stderr)
        headers = dict(line.split(': ', 1) for line in lines if ': ' in line)
        return Response(int(status.split()[1]), {name.lower(): value for name, value in headers.items()}, done.stdout)

    def curl_until_served(self, name: str, path: str, **kwargs: str) -> Response:
        """Repeat ``curl`` while the response is 503 with Retry-After.

        On a busy machine Neutron or Keystone may need longer than the deadline of a request.
        """
        deadline = time.monotonic() + REPEAT_FOR_S
        while True:
            response = self.curl(name, path, **kwargs)
            is_retryable = response.status == 503 and response.headers.get('retry-after')
            if not is_retryable or time.monotonic() > deadline:
                return response

    def metadata_wsgi_until(self, text: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Repeat ``metadata_wsgi`` until its output contains ``text``: it waits for services for a few seconds only."""
        deadline = time.monotonic() + REPEAT_FOR_S
        while True:
            done = self.metadata_wsgi(*words)
            if text in done.stdout + done.stderr or time.monotonic() > deadline:
                return done

    def metadata_wsgi(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``metadata-wsgi``."""
        verb, *rest = words
        argv = [BIN / 'metadata-wsgi', verb, '--config-file', self.conf_file, *rest]
        return subprocess.run(argv, capture_output=True, text=True)

    def log_text(self) -> str:
        """The agent's log."""
        return self._log.read_text()

    def remove(self) -> None:
        """Stop the agent, detach all guests and delete their namespaces."""
        self._end_agent()
        for guest in self._guests.values():
            if namespaces.exists(guest.gateway_namespace):
                self._attachment('detach', '--router-id' if guest.routed else '--network-id', guest.router_id)
            for name in (guest.namespace, guest.gateway_namespace):
                if namespaces.exists(name):
                    subprocess.run(['ip', 'netns', 'delete', name], check=True)
        shutil.rmtree(self._directory / 'external', ignore_errors=True)

    def _attachment(self, verb: str, *words: str) -> None:
        guest = next(guest for guest in self._guests.values() if guest.router_id in words)
        done = self.metadata_wsgi(verb, *words, '--namespace', guest.gateway_namespace)
        assert done.returncode == 0, done.stderr

    def _end_agent(self) -> None:
        if self._agent is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._agent.pid, signal.SIGKILL)
            self._agent.wait(60)
            self._agent = None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self._directory / 'metadata_proxy'))
                probe.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
                return probe.recv(100).startswith(b'HTTP/1.1 400')
            except OSError:
                return False
