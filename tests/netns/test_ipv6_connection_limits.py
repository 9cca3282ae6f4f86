# SPDX-License-Identifier: Apache-2.0
"""Connection limits for an instance that uses many IPv6 addresses. Its neighbour must be served meanwhile."""

import contextlib
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from metadata_wsgi.limits import MAX_CONNECTIONS_PER_ADDRESS
from metadata_wsgi.netns import interface_state, namespaces
from tests.e2e.conftest import eventually
from tests.rawserver import RawServer

from .router_topology import ip
from .switched_network import OK, URL4, URL6, a_router, curl

pytestmark = pytest.mark.netns

PROGRAM = str(Path(sys.prefix, 'bin', 'quantum-ns-metadata-proxy'))


@pytest.fixture
def router(wire):
    return a_router(wire)


SHARE, MANY = 2 * MAX_CONNECTIONS_PER_ADDRESS, 2 * MAX_CONNECTIONS_PER_ADDRESS + 44
"""The limit of connections of one /64, and the number of connections that the instance below opens."""


ADDRESSES = 300
"""The number of its addresses: the kernel has at most 1,024 neighbours at a time."""


class ManyConnections:
    """An instance that sends requests from ``ADDRESSES`` of the /64 ``prefix`` in turn and keeps them open."""

    def __init__(self, wire, router, prefix):
        self._guest = wire.guest
        self._addresses = [f'{prefix}1:{number:x}' for number in range(1, ADDRESSES + 1)]
        lines = [f'address add {address}/64 dev eth0 nodad\n' for address in self._addresses]
        subprocess.run(['ip', '-n', wire.guest, '-batch', '-'], input=''.join(lines).encode(), check=True)
        if not prefix.startswith('fe80'):
            ip('-n', router.namespace, 'address', 'add', f'{prefix}1/64', 'dev', 'qr-1', 'nodad')
        self._sockets = []

    def send_requests(self, count, target=b'/'):
        """Send ``count`` requests, each from the next address."""
        namespaces.run_in(self._guest, lambda: [self._send_request(target) for _ in range(count)])

    def _send_request(self, target):
        sock = socket.socket(socket.AF_INET6)
        scope = socket.if_nametoindex('eth0')
        address = self._addresses[len(self._sockets) % ADDRESSES]
        sock.bind((address, 0, 0, scope if address.startswith('fe80') else 0))
        sock.settimeout(8)
        sock.connect((interface_state.ADDRESS, 80, 0, scope))
        self._sockets.append(sock)
        sock.sendall(b'GET %s HTTP/1.1\r\nHost: x\r\n\r\n' % target)
        sock.setblocking(False)

    def responses(self):
        """The number of its requests with at least the beginning of a response."""
        return sum(piece.startswith(b'HTTP/1.1 200') for piece in map(self._peek, self._sockets))

    def closed(self):
        """The number of its connections that were closed."""
        return sum(map(self._is_closed, self._sockets))

    def _is_closed(self, sock):
        try:
            while sock.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True

    def _peek(self, sock):
        try:
            return sock.recv(16, socket.MSG_PEEK)
        except (BlockingIOError, ConnectionResetError):
            return b''

    def close(self):
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def many_connections(wire, router):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def gather(prefix):
            made = ManyConnections(wire, router, prefix)
            stack.callback(made.close)
            return made

        yield gather


@pytest.fixture
def neighbour(wire):
    """Sends a request over each family; whether both had a response."""
    ip('-n', wire.rival, 'route', 'add', 'default', 'via', '10.1.1.1')
    return lambda: [curl(wire.rival, url) for url in (URL6, URL4)] == ['this', 'this']


@pytest.mark.parametrize(('prefix', 'kept'), [('2001:db8::', SHARE), ('fe80::', MANY)])
def test_idle_connections_of_many_addresses_are_limited_per_global_64(
    wire, router, start_host, many_connections, neighbour, prefix, kept
):
    """Link-local addresses are counted one by one: those of all instances are in the same /64."""
    start_host(PROGRAM).attacher.attach(router)
    guest = many_connections(prefix)
    for count in (SHARE - 1, 1, MANY - SHARE):
        guest.send_requests(count)
        assert neighbour()
    eventually(lambda: guest.responses() == MANY, 'all were served')
    eventually(lambda: MANY - guest.closed() == kept, guest.closed)


@pytest.mark.parametrize(('prefix', 'kept'), [('2001:db8::', SHARE), ('fe80::', MANY)])
def test_connections_of_many_addresses_in_use_do_not_refuse_a_neighbour(
    wire, router, start_host, many_connections, neighbour, prefix, kept
):
    """A request is in progress on each connection: none can be closed for another."""
    host = start_host(PROGRAM)
    release = threading.Event()

    def slowly(peer):
        while request := peer.request():
            if b'/slow ' in request:
                release.wait(20)
            peer.send(OK)

    host.agent.close()
    Path(host.state_path, 'metadata_proxy').unlink()
    host.agent = RawServer(slowly, path=f'{host.state_path}/metadata_proxy')
    host.attacher.attach(router)
    guest = many_connections(prefix)
    try:
        for count in (SHARE, MANY - SHARE):
            guest.send_requests(count, b'/slow')
            assert neighbour()
        eventually(lambda: guest.closed() == MANY - kept, guest.closed)
        assert guest.responses() == 0
    finally:
        release.set()
    eventually(lambda: guest.responses() == kept, 'the requests in progress are finished')
