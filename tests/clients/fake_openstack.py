# SPDX-License-Identifier: Apache-2.0
"""A fake Keystone and a fake Quantum in one HTTP server on loopback; the responses are those recorded of real ones.

Keystone issues a token for a password (201, token in ``X-Subject-Token``, a catalogue with one network service).
Quantum lists ports for a request with that token, filtered as the real one filters. A user with the role ``reader``
sees only the ports of its own project, which has none: 200 and an empty list.
"""

from __future__ import annotations

import http.server
import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

PASSWORD = 'a password of tests'
OUR_PROJECT = '5f0f2f5c9d4e4f9e8a532c7b8a6affff'


def port(network_id: str, owner: str, device_id: str, project_id: str, *addresses: str, **more: str) -> dict[str, Any]:
    """A port as the API shows it."""
    return {
        'id': str(uuid.uuid4()),
        'network_id': network_id,
        'device_owner': owner,
        'device_id': device_id,
        'project_id': project_id,
        'tenant_id': project_id,
        'mac_address': 'fa:16:3e:00:00:00',
        'fixed_ips': [{'ip_address': address, 'subnet_id': 'a-subnet'} for address in addresses],
        **more,
    }


class OpenStackApi:
    """The responses, without a server.

    ``ports`` are Quantum's. ``network_owners`` are the projects whose networks have addresses in use.
    ``network_url`` is Quantum's URL in the catalogue.
    """

    def __init__(
        self, ports: Sequence[dict[str, Any]], network_url: str = '', network_owners: Sequence[str] = ()
    ) -> None:
        self.ports = ports
        self.network_owners = network_owners
        self.network_url = network_url
        self.roles_by_token: dict[str, str] = {}

    def respond(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, object, tuple[tuple[str, str], ...]]:
        """(status, JSON body, further headers) of the response to a request; header names in lower case."""
        if method == 'POST':
            return self._issue_token(path, json.loads(body))
        url = urlsplit(path)
        role = self.roles_by_token.get(headers.get('x-auth-token', ''))
        if role is None:
            return 401, {'error': 'no token'}, ()
        if url.path == '/v2.0/network-ip-availabilities':
            owners = self.network_owners if role == 'service' else ()
            return 200, {'network_ip_availabilities': [{'project_id': owner} for owner in owners]}, ()
        if url.path != '/v2.0/ports':
            return 404, {}, ()
        return 200, {'ports': self.list_ports(role, parse_qs(url.query))}, ()

    def _issue_token(self, path: str, body: Any) -> tuple[int, object, tuple[tuple[str, str], ...]]:
        user = body['auth']['identity']['password']['user']
        if path != '/v3/auth/tokens' or user['password'] != PASSWORD:
            return 401, {'error': {'code': 401, 'title': 'Unauthorized', 'message': 'no'}}, ()
        token_id, token = self.token(user['name'])
        return 201, {'token': token}, (('X-Subject-Token', token_id),)

    def token(self, user: str) -> tuple[str, dict[str, Any]]:
        """(token, token description) for a user, whose role has the user's name."""
        token_id = uuid.uuid4().hex
        self.roles_by_token[token_id] = user
        endpoints = [
            {'id': interface, 'interface': interface, 'region': 'One', 'region_id': 'One', 'url': self.network_url}
            for interface in ('admin', 'internal', 'public')
        ]
        domain = {'id': 'default', 'name': 'Default'}
        now = datetime.now(UTC)
        return token_id, {
            'methods': ['password'],
            'issued_at': f'{now:%Y-%m-%dT%H:%M:%S.000000Z}',
            'expires_at': f'{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%S.000000Z}',
            'user': {'id': user, 'name': user, 'domain': domain},
            'project': {'id': OUR_PROJECT, 'name': 'service', 'domain': domain},
            'roles': [{'id': user, 'name': user}],
            'catalog': [{'id': 'network', 'name': 'quantum', 'type': 'network', 'endpoints': endpoints}],
        }

    def list_ports(self, role: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The ports that ``query`` selects; a repeated filter means "or".

        The owner of a network (``shared_by`` of a port) sees the ports of other projects on it.
        """
        fields = query.pop('fields', [])
        for name in ('limit', 'sort_key', 'sort_dir'):
            query.pop(name, None)
        addresses = [value.removeprefix('ip_address=') for value in query.pop('fixed_ips', [])]
        found = [
            known
            for known in self.ports
            if (role == 'service' or OUR_PROJECT in (known['project_id'], known.get('shared_by')))
            and all(known[name] in wanted for name, wanted in query.items())
            and (not addresses or any(fixed['ip_address'] in addresses for fixed in known['fixed_ips']))
        ]
        return [{name: known[name] for name in fields or known if name in known} for known in found]


class FakeOpenStack(OpenStackApi):
    """Serves ``ports``. ``network_url`` is Quantum's URL in the catalogue, by default that of this server."""

    def __init__(self, ports: Sequence[dict[str, Any]], network_owners: Sequence[str] = ()) -> None:
        outer = self

        class Handler(_Handler):
            openstack = outer

        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        self.listen_port = self._server.server_port
        super().__init__(ports, f'http://127.0.0.1:{self.listen_port}', network_owners)

    def __enter__(self) -> FakeOpenStack:
        threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    openstack: OpenStackApi

    def do_POST(self) -> None:
        self._respond(self.rfile.read(int(self.headers['Content-Length'])))

    def do_GET(self) -> None:
        self._respond(b'')

    def _respond(self, received: bytes) -> None:
        lower = {name.lower(): value for name, value in self.headers.items()}
        status, body, headers = self.openstack.respond(self.command, self.path, lower, received)
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (*headers, ('Content-Type', 'application/json'), ('Content-Length', str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass
