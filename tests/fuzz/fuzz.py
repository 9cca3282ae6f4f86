# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the parsers for bytes of clients, of Nova, of Quantum, of workers and of operators.

``python tests/fuzz/fuzz.py TARGET [options of libFuzzer] [corpus directories]``, for example
``fuzz.py request -max_total_time=60``. TARGET ``all`` runs each for that long, one after the other. A finding
is an exception that the parser does not document, or a failed assertion; its input is written to ``crash-*``.

A target is a function of bytes. It works without atheris: ``tests/fuzz/test_targets.py`` calls it with its seeds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

SEEDS = Path(__file__).parent / 'seeds'
WIRE = Path(__file__).parent.parent / 'wire'
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

if __name__ == '__main__':
    import atheris

    instrumented = functools.partial(atheris.instrument_imports, include=['metadata_wsgi', 'gunicorn', 'yaml'])
else:  # imported by a test, without atheris
    instrumented = contextlib.nullcontext

with instrumented():
    from gunicorn.config import Config
    from gunicorn.http.errors import ParseException

    from metadata_wsgi import inventory, limits
    from metadata_wsgi.errors import ConfigError, InstanceLookupError
    from metadata_wsgi.filters.header_source import HeaderSourceFilter
    from metadata_wsgi.http import client, header_names, message, response_reader
    from metadata_wsgi.keeper import protocol
    from metadata_wsgi.lookup.neutron import ports_api, queries
    from metadata_wsgi.namespace_proxy.app import NamespaceProxyApp
    from metadata_wsgi.net import addresses
    from metadata_wsgi.pipeline import environ_keys
    from metadata_wsgi.server import master, request_parser

CLIENT = ('10.1.1.2', 40000)
SMALL_RECV_BYTES = 7


class RecordingHttpClient:
    """Records the bytes of each request and returns an empty response."""

    name = 'next'

    def __init__(self):
        self.heads = []

    def send_request(self, request, deadline):
        self.heads.append(client.header_bytes(request, 'localhost') + request.body)
        return message.Response(200, 'OK', [], [])


class FakeSocket:
    """A socket on which ``data`` arrives in pieces, then the end; what is sent is discarded."""

    def __init__(self, data, size=SMALL_RECV_BYTES):
        self._pieces = [data[start : start + size] for start in range(0, len(data), size)][::-1]

    def recv(self, size, *flags):
        return self._pieces.pop() if self._pieces else b''

    def sendall(self, data):
        pass

    def settimeout(self, seconds):
        pass

    def close(self):
        pass


def _config():
    made = Config()
    for name, value in master.STRICT.items():
        made.set(name, value)
    return made


CONFIG = _config()


def _environs(data, addr, recv_size):
    """The environ of each request in ``data``, as a worker makes it."""
    sock = FakeSocket(data, recv_size)
    requests = request_parser.RequestStream(CONFIG, sock, addr)
    while True:
        try:
            parsed = requests.next() if requests.wait_for_data() else None
        except ParseException:
            return
        if parsed is None:
            return
        yield {'wsgi.input_terminated': True, 'REMOTE_ADDR': addr and addr[0], **parsed.fields}


def _ignore(status, headers, exc_info=None):
    return lambda data: None


def request(data):
    """A client's bytes, through the namespace proxy and into the agent: they never change the client's identity."""
    environs = []
    for recv_size in (SMALL_RECV_BYTES, limits.RECV_BYTES):
        _request(data, recv_size)
        environs.append([_without_body(environ) for environ in _environs(data, CLIENT, recv_size)])
    # Both parsers find the same requests, whatever the size of the pieces.
    assert environs[0] == environs[1], environs


def _without_body(environ):
    return {key: value for key, value in environ.items() if key != 'wsgi.input'}


def _request(data, recv_size):
    sent = RecordingHttpClient()
    proxy = NamespaceProxyApp(sent, router_id='router-a')
    for environ in _environs(data, CLIENT, recv_size):
        before = len(sent.heads)
        proxy(environ, _ignore)
        assert len(sent.heads) <= before + 1
    for head in sent.heads:
        sources = []

        def app(environ, start_response, sources=sources):
            sources.append(environ[environ_keys.SOURCE])
            left = [name for name, _ in message.headers(environ) if header_names.is_reserved(name)]
            assert not left, left
            message.target(environ)
            message.body(environ, 1 << 20)
            return []

        agent = HeaderSourceFilter(app, prefix='X-Quantum')
        for environ in _environs(head, '', recv_size):
            agent(environ, _ignore)
        assert sources == [environ_keys.Source('10.1.1.2', 'router-a')], (sources, head)


def response(data):
    """A response of the agent or of Nova: read completely, or refused."""
    for method in ('GET', 'HEAD'):
        connection = response_reader.ClientConnection(FakeSocket(data))
        with contextlib.suppress(OSError, ValueError):
            header = connection.read_header()
            assert header.status >= 200
            assert not any(re.search(r'[\r\n\0]', name + value) for name, value in header.headers)
            for _ in connection.read_body(method, header):
                pass


def address(data):
    """A text where an address is expected."""
    text = data.decode('latin-1')
    with contextlib.suppress(ValueError):
        found = addresses.normalize_ip(text)
        assert addresses.normalize_ip(found) == found
        assert re.fullmatch(r'[0-9a-f.:]+', found), found


def cloud(data):
    """An operator's inventory."""
    with contextlib.suppress(ConfigError):
        inventory.parse(data, 'fuzzed')


class Response:
    """Like a response of requests."""

    def __init__(self, data):
        self._data = data

    def json(self):
        return json.loads(self._data)


TOKEN = types.SimpleNamespace(endpoint='http://quantum')


def quantum(data):
    """A response of Quantum: ports, or an error for what are none."""
    with contextlib.suppress(InstanceLookupError):
        body = ports_api._parse_ports(Response(data), TOKEN)
        following = ports_api._next_page_query(body)
        assert all(isinstance(name, str) and isinstance(value, str) for name, value in following)
        networks = queries.networks_behind(queries.router_networks('router-1', body['ports']), None)
        for query in queries.ports_queries([queries.address_filter('10.1.1.2')], networks):
            str(query)
        for port in body['ports']:
            for kind in ('fixed_ips', 'mac_address'):
                assert all(isinstance(text, str) for text in queries.reference_filter(port, kind) or ())
        for where in ('10.1.1.2', 'fe80::f816:3eff:fe00:1', '2001:db8::1'):
            for instance in queries.matching_instances(where, networks, body['ports']):
                assert all(isinstance(text, str) for text in (instance.instance_id, instance.project_id))


def keeper(data):
    """What a compromised worker sends to the privileged process."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there, contextlib.suppress(ValueError, EOFError):
        there.send(data[:60000])
        there.close()
        message, _ = protocol.receive(here)
        listener = protocol.Listener.from_json(message)
        assert isinstance(listener.key, str)
        assert protocol.Listener.from_json(json.loads(json.dumps(listener.to_json()))) == listener


TARGETS = {function.__name__: function for function in (request, response, address, cloud, quantum, keeper)}


def _wire_seeds():
    from tests.wire.cases import cases

    return [case.data('proxy') for case in cases()]


def seeds(name):
    """Initial inputs."""
    found = [path.read_bytes() for path in sorted((SEEDS / name).glob('*'))]
    return found + (_wire_seeds() if name == 'request' else [])


def _fuzz(name, options):
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            Path(corpus, f'seed-{number}').write_bytes(seed)
        atheris.Setup([sys.argv[0], '-max_len=20000', '-timeout=20', *options, corpus], TARGETS[name])
        atheris.Fuzz()


def main(argv):
    """Run the target; returns libFuzzer's exit code, of the first target with a finding."""
    if not argv or argv[0] not in (*TARGETS, 'all'):
        return f'fuzz.py TARGET [options of libFuzzer]; TARGET is one of {", ".join(TARGETS)}, all'
    if argv[0] != 'all':
        return _fuzz(argv[0], argv[1:])
    codes = [subprocess.run([sys.executable, __file__, name, *argv[1:]]).returncode for name in TARGETS]
    return next((code for code in codes if code), 0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
