# SPDX-License-Identifier: Apache-2.0
"""The real agent where name servers do not reply, and where a name has addresses that do not.

The agent has an /etc/resolv.conf and /etc/hosts of its own, in a mount namespace.
"""

import contextlib
import http.server
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cloud import Cloud
from tests.e2e.conftest import BIN, UnixConnection, eventually, programs_in, rejects_unidentified_request, request

pytestmark = pytest.mark.netns

HEADERS = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
CLOUD_INIT_TIMEOUT_S = 10
MOUNTED = 'mount --bind "$0/resolv.conf" /etc/resolv.conf && mount --bind "$0/hosts" /etc/hosts && exec "$@"'


class Connection(UnixConnection):
    """Gives up as cloud-init does."""

    def __init__(self, path):
        super().__init__(path)
        self.timeout = CLOUD_INIT_TIMEOUT_S


@pytest.fixture
def silent_name_server():
    """The address of a name server that receives queries and sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.99', 53))
        yield '127.0.0.99'


@pytest.fixture
def start(tmp_path, silent_name_server):
    """A function: (lines of /etc/hosts, options) -> the cloud and its started agent."""
    with Cloud(tmp_path) as cloud, programs_in(tmp_path) as programs:

        def run(hosts, **options):
            (tmp_path / 'resolv.conf').write_text(
                f'nameserver {silent_name_server}\noptions timeout:5 attempts:2\nsearch example.net\n'
            )
            (tmp_path / 'hosts').write_text(''.join(f'{line}\n' for line in ('127.0.0.1 localhost', *hosts)))
            cloud.configure(**options)
            agent = [BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file]
            program = programs('agent', 'unshare', '--mount', 'sh', '-c', MOUNTED, tmp_path, *agent)
            eventually(lambda: rejects_unidentified_request(cloud.socket), program.text)
            return cloud, program

        yield run


class Nova(http.server.BaseHTTPRequestHandler):
    """Answers 200 to everything."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def nova_at(address):
    """The port of a Nova at ``address``."""
    with http.server.ThreadingHTTPServer((address, 0), Nova) as server, ThreadPoolExecutor(1) as executor:
        server.daemon_threads = True
        executor.submit(server.serve_forever, 0.02)
        try:
            yield server.server_port
        finally:
            server.shutdown()


def get(cloud):
    status, headers, _ = request(Connection(cloud.socket), 'GET', '/openstack/latest/meta_data.json', HEADERS)
    return status, headers.get('retry-after')


def test_with_silent_name_servers_all_requests_get_a_503_in_time_and_the_name_is_logged(start):
    """More requests at once than gevent has threads for lookups."""
    cloud, program = start([], nova_metadata_host='nova.example.net')
    with ThreadPoolExecutor(14) as clients:
        assert set(clients.map(get, [cloud] * 14)) == {(503, '1')}
    assert 'no response from Nova: http://nova.example.net' in program.text()
    assert 'name nova.example.net could not be resolved within' in program.text()


@pytest.fixture
def test_net():
    """198.51.100.0/24 behind an interface where packets disappear; only 198.51.100.4 is this host, by a redirect.

    All four addresses are alike to getaddrinfo, which so returns them in the order of /etc/hosts.
    """
    redirect = ['OUTPUT', '-d', '198.51.100.4', '-p', 'tcp', '-j', 'REDIRECT']
    for command in (
        'ip link add test-net type veth peer name test-net-peer',
        'ip link set test-net arp off up',
        'ip link set test-net-peer up',
        'ip address add 198.51.100.254/24 dev test-net',
    ):
        subprocess.run(command.split(), check=True)
    subprocess.run(['iptables', '-t', 'nat', '-A', *redirect], check=True)
    yield
    subprocess.run(['iptables', '-t', 'nat', '-D', *redirect], check=True)
    subprocess.run(['ip', 'link', 'del', 'test-net'], check=True)


def test_an_address_that_works_is_found_behind_three_that_do_not_reply(start, test_net):
    """In the time of one request; later ones start with it."""
    with nova_at('127.0.0.1') as port:
        cloud, program = start(
            ['198.51.100.1 nova', '198.51.100.2 nova', '198.51.100.3 nova', '198.51.100.4 nova'],
            nova_metadata_host='nova',
            nova_metadata_port=port,
        )
        assert [get(cloud) for _ in range(5)] == [(200, None)] * 5, program.text()
