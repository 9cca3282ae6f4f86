# SPDX-License-Identifier: Apache-2.0
"""The real programs, once for all wire tests, and behind them a Nova that records every request."""

import contextlib
import hashlib
import hmac
import importlib.util
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from metadata_wsgi.http import header_names
from tests.cloud import ROUTER, SECRET, Cloud
from tests.e2e.conftest import BIN, Program, eventually, free_port, rejects_unidentified_request
from tests.rawserver import RawServer, always_responds_with

NOVA_RESPONSE = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nheard'


@dataclass
class ReceivedRequest:
    """A request that Nova received."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def of(cls, data):
        head, _, body = data.partition(b'\r\n\r\n')
        first, *lines = head.decode('latin-1').split('\r\n')
        method, target, version = first.split(' ')
        assert version == 'HTTP/1.1'
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(':') for line in lines)]
        return cls(method, target, headers, body)


SIGNATURE = hmac.new(SECRET.encode(), b'instance-a', hashlib.sha256).hexdigest()
SENDER_HEADERS = {
    header_names.FORWARDED_FOR: '127.0.0.1',
    header_names.INSTANCE_ID: 'instance-a',
    header_names.TENANT_ID: 'project-a',
    header_names.SIGNATURE: SIGNATURE,
}
IDENTITY_HEADERS = {
    header_names.FORWARDED_FOR, header_names.INSTANCE_ID, header_names.TENANT_ID, header_names.SIGNATURE,
}  # fmt: skip
ALLOWED = (
    header_names.UPSTREAM_ALLOWED
    | IDENTITY_HEADERS
    | {'host', 'content-length', header_names.REQUEST_ID, header_names.TRACEPARENT}
)
REQUEST_ID = re.compile(r'req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
TRACEPARENT = re.compile(r'00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}')


def assert_identifies_sender(received):
    """Fails unless the headers identify the sender, once, and no other instance."""
    names = [name for name, _ in received.headers]
    assert len(names) == len(set(names)), names
    assert set(names) <= ALLOWED, names
    assert all(re.fullmatch(r'[a-z0-9-]+', name) for name in names)
    headers = dict(received.headers)
    assert {name: headers.get(name) for name in SENDER_HEADERS} == SENDER_HEADERS
    assert int(headers.get('content-length', 0)) == len(received.body)
    assert REQUEST_ID.fullmatch(headers[header_names.REQUEST_ID])
    assert TRACEPARENT.fullmatch(headers.get(header_names.TRACEPARENT, '00-' + '1' * 32 + '-' + '1' * 16 + '-00'))


class Servers:
    """The servers to which bytes are sent, and the requests that Nova received."""

    def __init__(self, addresses, nova, programs=()):
        self.addresses = addresses
        self._nova = nova
        self._programs = programs

    def send(self, server, data, timeout_s=15.0):
        """(status of the first response or None, all bytes of the response)."""
        address = self.addresses[server]
        response = b''
        with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            sock.connect(address)
            with contextlib.suppress(OSError):  # the server closed the connection before everything was sent
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while piece := sock.recv(65536):
                    response += piece
        response = response.removeprefix(b'HTTP/1.1 100 Continue\r\n\r\n')
        found = re.match(rb'HTTP/1\.[01] (\d{3}) ', response)
        return int(found[1]) if found else None, response

    def responds(self, server):
        """Whether the server is up."""
        try:
            return self.send(server, b'GET / HTTP/1.1\r\n\r\n')[0] == 200
        except OSError:
            return False

    def tracebacks(self):
        """The logs of the programs that have a traceback."""
        return [log for program in self._programs if 'Traceback' in (log := program.text())]

    def received(self):
        """The requests that Nova received since the last call."""
        seen, self._nova.requests[:] = list(self._nova.requests), []
        return [ReceivedRequest.of(data) for data in seen]


HIDES_H1C = Path(__file__).parent / 'without_h1c'
PARSERS = ['gunicorn_h1c', 'python'] if importlib.util.find_spec('gunicorn_h1c') else ['python']


@pytest.fixture(scope='package', params=PARSERS)
def parser(request):
    """The parser of headers of all programs: gunicorn_h1c if it is installed, and the ones in Python."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 'python':
            patch.setenv('PYTHONPATH', str(HIDES_H1C), prepend=os.pathsep)
        yield request.param


@pytest.fixture(scope='package')
def servers(tmp_path_factory, parser):
    """Namespace proxy, agent and one hop as processes."""
    directory = tmp_path_factory.mktemp('wire')
    nova = RawServer(always_responds_with(NOVA_RESPONSE))
    started = []

    def start(name, *argv):
        started.append(Program(directory / f'{name}.log', *argv))
        return started[-1]

    with Cloud(directory) as cloud:
        cloud.configure(nova_metadata_port=nova.port)
        agent = start('agent', BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file)
        port, one_hop_port = free_port(), free_port()
        try:
            # The namespace proxy runs as the user that may connect to the agent's socket, so the socket must exist.
            eventually(
                lambda: agent.has_workers() and rejects_unidentified_request(cloud.socket),
                'the agent has loaded its pipeline',
            )
            start(
                'proxy', BIN / 'quantum-ns-metadata-proxy', '--nodaemonize', f'--router_id={ROUTER}',
                f'--state_path={cloud.state_path}', f'--metadata_port={port}', '--metadata_host=127.0.0.1',
            )  # fmt: skip
            start('one_hop', sys.executable, '-m', 'tests.wire.one_hop', one_hop_port, cloud.conf_file)
            addresses = {
                'proxy': ('127.0.0.1', port),
                'agent': str(cloud.socket),
                'one_hop': ('127.0.0.1', one_hop_port),
            }
            made = Servers(addresses, nova, started)
            for server in ('proxy', 'one_hop'):
                eventually(lambda server=server: made.responds(server), f'{server} responds')
            made.received()
            yield made
            assert not made.tracebacks()
        finally:
            for program in started:
                program.end()
            nova.close()
