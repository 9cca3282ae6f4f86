# SPDX-License-Identifier: Apache-2.0
"""While a router is detached, an instance connects to the port itself as fast as it can: it never gets through."""

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from metadata_wsgi.netns import namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.rules import rules_for
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import AttachTarget
from tests.e2e.conftest import eventually

from .router_topology import METADATA, get, saved_rules

pytestmark = [pytest.mark.netns, pytest.mark.not_traced]

# It accepts whatever reaches the port, without the real proxy's check of the original destination.
STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))
THREADS = 4


class Flood:
    """Connects from the instance to 10.1.1.1:9697 until ``stop``; counts the connections that were accepted."""

    def __init__(self, namespace):
        self.accepted = self.attempts = 0
        self._running = True
        self._threads = [
            threading.Thread(target=namespaces.run_in, args=(namespace, self._connect)) for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def _connect(self):
        while self._running:
            with contextlib.suppress(OSError), socket.socket() as sock:
                self.attempts += 1
                sock.settimeout(0.002)
                sock.connect(('10.1.1.1', 9697))
                self.accepted += 1

    def stop(self):
        self._running = False
        for thread in self._threads:
            thread.join()


def original_destination(connection):
    """SO_ORIGINAL_DST, as the proxy reads it."""
    packed = connection.getsockopt(socket.SOL_IP, 80, 16)
    return socket.inet_ntoa(packed[4:8]), int.from_bytes(packed[2:4], 'big')


def connect(namespace, address, source_port):
    def run():
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(('10.1.1.2', source_port))
        sock.settimeout(5)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    return namespaces.run_in(namespace, run)


def test_original_destination_is_that_of_an_earlier_connection_once_the_rules_are_gone(topology):
    """Why the check of the original destination does not replace the order of detach.

    conntrack still has the earlier connection from the same source port, and returns its destination. With the rules
    such a connection does not reach the port.
    """
    iptables = Iptables(SubprocessRunner())
    iptables.apply(topology.router, rules_for())
    with namespaces.run_in(topology.router, lambda: socket.create_server(('', 9697))) as server:
        server.settimeout(5)
        redirected = connect(topology.guest, (METADATA, 80), 40000)
        accepted, _ = server.accept()
        assert original_destination(accepted) == (METADATA, 80)
        redirected.close()
        accepted.close()
        with pytest.raises(TimeoutError):
            connect(topology.guest, ('10.1.1.1', 9697), 40000)
        iptables.apply(topology.router, ())
        with connect(topology.guest, ('10.1.1.1', 9697), 40000):
            accepted, _ = server.accept()
            with accepted:
                assert original_destination(accepted) == (METADATA, 80)


def test_no_direct_connection_is_accepted_during_detach(topology, tmp_path):
    attacher = Attacher(SubprocessRunner(), proxy=ProxyCommand(program=STANDIN, state_path=str(tmp_path)))
    target = AttachTarget.of('router', topology.uuid)
    try:
        for _ in range(5):
            attacher.attach(target, wait_for_ipv6=False)
            assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'
            flood = Flood(topology.guest)
            try:
                eventually(lambda flood=flood: flood.attempts, 'the flood has begun')
                assert attacher.detach(target) is True
            finally:
                flood.stop()
            assert (flood.accepted, saved_rules(topology.router, 'iptables')) == (0, [])
    finally:
        proxy_process.stop(ProxyCommand(state_path=str(tmp_path)).pid_file(topology.uuid), topology.uuid)
