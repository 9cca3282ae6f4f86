# SPDX-License-Identifier: Apache-2.0
"""The proxy's check of the original destination, with the rules and without them, in every mode."""

import socket

import pytest

from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.protocol import ONE_HOP, SHARED, Listener
from metadata_wsgi.netns import namespaces
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.rules import rules_for
from metadata_wsgi.netns.runner import SubprocessRunner
from tests.e2e.conftest import BIN, eventually

from .router_topology import METADATA, get, ip

pytestmark = pytest.mark.netns

SERVED = 'The metadata service is not available now.\n'
"""The response of a namespace proxy without an agent: the connection was accepted."""


@pytest.fixture
def iptables():
    return Iptables(SubprocessRunner())


@pytest.fixture
def proxy(start, cloud, topology):
    """A namespace proxy in the router's namespace, without an agent."""

    def started(*more, port=9697):
        program = start(
            'proxy', 'ip', 'netns', 'exec', topology.router, BIN / 'quantum-ns-metadata-proxy', '--nodaemonize',
            '--verbose', '--router_id=router-a', f'--state_path={cloud.state_path}', f'--metadata_port={port}',
            '--answer_within=0.1', *more,
        )  # fmt: skip
        eventually(lambda: program.process.poll() is not None or program.has_workers(), 'the proxy has a worker')
        assert program.process.poll() is None, program.text()
        return program

    return started


def answers_packets(path):
    """Whether a process accepts on the SEQPACKET socket ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(path) == 0


def kept(start, cloud, mode, topology):
    """Attach the router through a keeper, in that mode."""
    start('keeper', BIN / 'metadata-wsgi', 'keeper', '--config-file', cloud.conf_file)
    eventually(lambda: answers_packets(admin_client.socket_path(str(cloud.state_path))), 'the keeper is there')
    with admin_client.connect(str(cloud.state_path)) as keeper:
        keeper.register(Listener(mode=mode, namespace=topology.router, host='', port=9697, router_id=cloud.router_id))


def serve_process(request):
    request.getfixturevalue('proxy')()
    return SERVED


def serve_shared(request):
    start, cloud, topology = (request.getfixturevalue(name) for name in ('start', 'cloud', 'topology'))
    kept(start, cloud, SHARED, topology)
    start(
        'shared', BIN / 'quantum-ns-metadata-proxy', '--nodaemonize', '--verbose', '--shared',
        f'--state_path={cloud.state_path}', '--answer_within=0.1',
    )  # fmt: skip
    return SERVED


def serve_one_hop(request):
    start, cloud, topology = (request.getfixturevalue(name) for name in ('start', 'cloud', 'topology'))
    cloud.configure(metadata_one_hop='true')
    kept(start, cloud, ONE_HOP, topology)
    request.getfixturevalue('agent')()
    return '{"uuid": "instance-a", "path": "/"}'


@pytest.mark.parametrize('serve', [serve_process, serve_shared, serve_one_hop])
def test_only_redirected_connections_are_served(request, serve, topology, iptables):
    served = serve(request)
    iptables.apply(topology.router, rules_for())
    eventually(lambda: get(topology.guest, METADATA) == served, 'the guest is served by the metadata address')
    assert get(topology.guest, '10.1.1.1', 9697, timeout_s=0.5) == ''
    # Without any rule the port is open, and still no request is served there.
    iptables.apply(topology.router, ())
    for namespace, address in (
        (topology.guest, '10.1.1.1'), (topology.guest, '198.51.100.1'), (topology.outside, '198.51.100.1'),
        (topology.outside, '10.1.1.1'),
    ):  # fmt: skip
        assert reaches(namespace, address, 9697), address
        assert get(namespace, address, 9697) == '', address


def reaches(namespace, address, port):
    """Whether a connection can be opened."""

    def connect():
        with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as connection:
            connection.settimeout(2)
            return connection.connect_ex((address, port)) == 0

    return namespaces.run_in(namespace, connect)


def test_only_redirected_connections_are_served_over_ipv6(topology, iptables, proxy):
    for name, link, addresses in (
        (topology.router, 'qr-in', ('fe80::a9fe:a9fe/64', 'fd00:1::1/64')),
        (topology.guest, 'eth0', ('fe80::2/64', 'fd00:1::2/64')),
    ):
        for address in addresses:
            ip('-n', name, 'address', 'add', address, 'dev', link, 'nodad')
    proxy()
    iptables.apply(topology.router, rules_for())
    assert get(topology.guest, 'fe80::a9fe:a9fe%eth0') == SERVED
    iptables.apply(topology.router, ())
    assert reaches(topology.guest, 'fd00:1::1', 9697)
    assert get(topology.guest, 'fd00:1::1', 9697) == ''
    assert get(topology.guest, 'fe80::a9fe:a9fe%eth0', 9697) == ''


def test_metadata_address_itself_is_served_in_a_dhcp_namespace(topology, proxy):
    ip('-n', topology.router, 'address', 'add', f'{METADATA}/32', 'dev', 'qr-in')
    proxy(f'--metadata_host={METADATA}', port=80)
    assert get(topology.guest, METADATA) == SERVED


def test_operator_over_loopback_is_served(topology, proxy):
    proxy()
    assert get(topology.router, '127.0.0.1', 9697) == SERVED


def test_refusal_is_logged_once_and_can_be_disabled(topology, proxy):
    program = proxy()
    for _ in range(3):
        assert get(topology.guest, '10.1.1.1', 9697) == ''
    assert program.text().count('was not made to the metadata address') == 1
    program.end()
    proxy('--any_destination')
    assert get(topology.guest, '10.1.1.1', 9697) == SERVED
