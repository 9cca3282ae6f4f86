# SPDX-License-Identifier: Apache-2.0
"""fe80::a9fe:a9fe from an instance, requested with curl, through a router and without one, also with a duplicate.

::

    guest 10.1.1.2 ---[switch]--- 10.1.1.1 the router's or DHCP server's namespace
                         |
                       rival, which may have fe80::a9fe:a9fe too
"""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from metadata_wsgi.limits import MAX_CONNECTIONS_PER_ADDRESS
from metadata_wsgi.netns import interface_state, namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher, ProxyCommand
from metadata_wsgi.netns.attachment_status import list_attachments
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import AttachTarget
from tests.e2e.conftest import eventually
from tests.rawserver import RawServer, always_responds_with

from .router_topology import METADATA, get, ip

pytestmark = pytest.mark.netns

STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))
PROGRAM = str(Path(sys.prefix, 'bin', 'quantum-ns-metadata-proxy'))
URL6 = f'http://[{interface_state.ADDRESS}%25eth0]/openstack'
URL4 = f'http://{METADATA}/openstack'
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nthis'


class SwitchedNetwork:
    """A switch with an instance, a rival, and other hosts that are plugged in."""

    def __init__(self):
        self.id = uuid.uuid4().hex[:8]
        self.names = []
        self.switch, self.guest, self.rival = (self.namespace(f'{kind}-{self.id}') for kind in ('sw', 'guest', 'rival'))
        ip('-n', self.switch, 'link', 'add', 'br0', 'type', 'bridge')
        ip('-n', self.switch, 'link', 'set', 'br0', 'up')
        self.plug(self.guest, 'eth0', '10.1.1.2/24')
        self.plug(self.rival, 'eth0', '10.1.1.9/24')

    def namespace(self, name):
        ip('netns', 'add', name)
        self.names.append(name)
        ip('-n', name, 'link', 'set', 'lo', 'up')
        return name

    def plug(self, namespace, interface, cidr):
        port = f'p{uuid.uuid4().hex[:8]}'
        ip('-n', namespace, 'link', 'add', interface, 'type', 'veth', 'peer', 'name', port, 'netns', self.switch)
        ip('-n', self.switch, 'link', 'set', port, 'master', 'br0', 'up')
        ip('-n', namespace, 'address', 'add', cidr, 'dev', interface)
        if interface == 'eth0':
            # Up for a while already: its own link-local address has been checked.
            ip('netns', 'exec', namespace, 'sysctl', '-qw', 'net.ipv6.conf.eth0.accept_dad=0')
        ip('-n', namespace, 'link', 'set', interface, 'up')

    def rival_takes_it(self):
        ip('-n', self.rival, 'address', 'add', f'{interface_state.ADDRESS}/64', 'dev', 'eth0', 'nodad')

    def rival_leaves(self):
        ip('-n', self.rival, 'address', 'del', f'{interface_state.ADDRESS}/64', 'dev', 'eth0')

    def mac(self, namespace, interface='eth0'):
        return self._json('-n', namespace, 'link', 'show', interface)[0]['address']

    def address(self, namespace, interface):
        """fe80::a9fe:a9fe on the interface as ``ip`` shows it; None if it is not there."""
        found = self._json('-n', namespace, '-6', 'address', 'show', 'dev', interface)
        infos = [info for one in found for info in one.get('addr_info', ())]
        return next((info for info in infos if info['local'] == interface_state.ADDRESS), None)

    def _json(self, *words):
        return json.loads(subprocess.run(['ip', '-j', *words], check=True, capture_output=True).stdout)

    def remove(self):
        for name in self.names:
            if namespaces.exists(name):
                ip('netns', 'delete', name)


@pytest.fixture
def wire():
    wire = SwitchedNetwork()
    try:
        yield wire
    finally:
        wire.remove()


@pytest.fixture(params=['router', 'network'])
def target(request, wire):
    return a_router(wire) if request.param == 'router' else a_network(wire)


@pytest.fixture
def router(wire):
    return a_router(wire)


@pytest.fixture
def network(wire):
    return a_network(wire)


def a_router(wire):
    target = AttachTarget.of('router', str(uuid.uuid4()))
    wire.plug(wire.namespace(target.namespace), 'qr-1', '10.1.1.1/24')
    ip('-n', wire.guest, 'route', 'add', 'default', 'via', '10.1.1.1')
    return target


def a_network(wire):
    target = AttachTarget.of('network', str(uuid.uuid4()))
    wire.plug(wire.namespace(target.namespace), 'tap0', '10.1.1.1/24')
    ip('-n', wire.guest, 'route', 'add', METADATA, 'via', '10.1.1.1')
    return target


def interface_of(target):
    return 'qr-1' if target.kind == 'router' else 'tap0'


class Host:
    """A state directory, an attacher that starts ``program``, and a fake agent that records requests."""

    def __init__(self, state_path, program):
        self.state_path = str(state_path)
        self.proxy = ProxyCommand(program=program, state_path=self.state_path, log_dir=self.state_path)
        self.attacher = Attacher(SubprocessRunner(), proxy=self.proxy, stop_timeout_s=5)
        self.agent = RawServer(always_responds_with(OK), path=f'{self.state_path}/metadata_proxy')

    def find(self, target):
        found = list_attachments(Iptables(SubprocessRunner()), state_path=self.state_path)
        return next(one for one in found if one.uuid == target.uuid)

    def pid(self, target):
        return proxy_process.running_pid(self.proxy.pid_file(target.uuid), target.uuid)

    def close(self):
        for file in Path(self.state_path).glob('external/pids/*.pid'):
            proxy_process.stop(str(file), file.stem, timeout_s=5)
        self.agent.close()


@pytest.fixture
def start_host(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(program):
            host = Host(tmp_path, program)
            stack.callback(host.close)
            return host

        yield start


@pytest.fixture
def host(start_host):
    return start_host(STANDIN)


def curl(namespace, url):
    """The body, or '' without a response."""
    argv = ['ip', 'netns', 'exec', namespace, 'curl', '-gsS', '-m', '8', url]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def link_local(wire, namespace):
    (info,) = wire._json('-n', namespace, '-6', 'address', 'show', 'dev', 'eth0')[0]['addr_info']
    return info['local']


def test_instance_is_served_over_both_families_by_the_real_proxy(wire, target, start_host):
    """The agent receives the instance's own address, without a zone, and the id of its network."""
    host = start_host(PROGRAM)
    assert host.attacher.attach(target) is True
    assert (curl(wire.guest, URL6), curl(wire.guest, URL4)) == ('this', 'this')
    six, four = (head.decode().lower() for head in host.agent.requests)
    assert f'\r\nx-forwarded-for: {link_local(wire, wire.guest)}\r\n' in six
    assert '\r\nx-forwarded-for: 10.1.1.2\r\n' in four
    assert all(f'\r\nx-quantum-{target.kind}-id: {target.uuid}\r\n' in head for head in (four, six))
    assert host.find(target).problems == ()
    # Again, and nothing is done; then off, and nothing is left.
    pid = host.pid(target)
    assert host.attacher.attach(target) is False
    assert host.pid(target) == pid
    assert host.attacher.detach(target) is True
    assert wire.address(target.namespace, interface_of(target)) is None
    assert host.attacher.detach(target) is False


def test_address_is_never_the_source_of_the_routers_own_packets(wire, router, host):
    """Otherwise an instance would lose its default route at detach."""
    host.attacher.attach(router)
    found = wire.address(router.namespace, 'qr-1')
    assert (found['prefixlen'], found['deprecated'], found['preferred_life_time']) == (128, True, 0)


@pytest.mark.parametrize('kind', ['router', 'network'])
def test_duplicate_address_disables_ipv6_only_and_is_reported(wire, host, kind, caplog):
    target = a_router(wire) if kind == 'router' else a_network(wire)
    wire.rival_takes_it()
    assert host.attacher.attach(target) is True
    assert len(caplog.messages) == 1
    assert f'is not on {interface_of(target)}, because {wire.mac(wire.rival)} on its network has it' in caplog.text
    assert wire.address(target.namespace, interface_of(target)) is None
    assert get(wire.guest, METADATA) == f'proxy of {target.uuid}'
    found = host.find(target)
    # Another DHCP agent of the same network is no fault of anybody.
    expected, silent = (found.problems, found.notes) if kind == 'router' else (found.notes, found.problems)
    assert (len(expected), silent) == (1, ())
    assert wire.mac(wire.rival) in expected[0]
    caplog.clear()
    wire.rival_leaves()
    assert host.attacher.attach(target) is False
    assert caplog.messages == []
    assert curl(wire.guest, URL6) == f'proxy of {target.uuid}'
    assert (host.find(target).problems, host.find(target).notes) == ((), ())


def test_dad_retry_succeeds_when_the_rival_leaves(wire, router, host, caplog):
    """IPv4 is served meanwhile."""
    wire.rival_takes_it()
    attaching = threading.Thread(target=host.attacher.attach, args=(router,))
    attaching.start()
    give_up_at = time.monotonic() + 15
    while not get(wire.guest, METADATA, timeout_s=1) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert attaching.is_alive()
    wire.rival_leaves()
    attaching.join(30)
    assert caplog.messages == []
    assert curl(wire.guest, URL6) == f'proxy of {router.uuid}'


def test_interface_added_later_is_reported_and_gets_the_address(wire, router, host):
    host.attacher.attach(router)
    other = SwitchedNetwork()
    try:
        other.plug(router.namespace, 'qr-2', '10.2.2.1/24')
        assert host.find(router).problems == ('fe80::a9fe:a9fe is missing on qr-2; attach it again',)
        assert host.attacher.attach(router) is False
        assert host.find(router).problems == ()
        assert curl(other.guest, URL6) == f'proxy of {router.uuid}'
    finally:
        other.remove()


def test_two_interfaces_on_one_network_are_no_duplicates(wire, router, host, caplog):
    """An IPv4 and an IPv6 subnet of one network have an interface each."""
    wire.plug(router.namespace, 'qr-2', '10.1.2.1/24')
    host.attacher.attach(router)
    having = [name for name in ('qr-1', 'qr-2') if wire.address(router.namespace, name)]
    assert len(having) == 1
    assert curl(wire.guest, URL6) == f'proxy of {router.uuid}'
    assert (host.find(router).problems, caplog.messages) == ((), [])


def test_interface_without_ipv6_is_no_problem(wire, router, host, caplog):
    disabled = 'net.ipv6.conf.qr-1.disable_ipv6=1'
    subprocess.run(['ip', 'netns', 'exec', router.namespace, 'sysctl', '-qw', disabled], check=True)
    host.attacher.attach(router)
    assert get(wire.guest, METADATA) == f'proxy of {router.uuid}'
    assert (host.find(router).problems, caplog.messages) == ((), [])


def test_kernel_without_ipv6_is_no_problem(wire, target, host):
    attacher = Attacher(SubprocessRunner(), proxy=host.proxy, families=(4,))
    attacher.attach(target)
    assert wire.address(target.namespace, interface_of(target)) is None
    assert get(wire.guest, METADATA) == f'proxy of {target.uuid}'
    found = list_attachments(Iptables(SubprocessRunner()), state_path=host.state_path, families=(4,))
    assert [one.problems for one in found if one.uuid == target.uuid] == [()]


def test_proxy_that_serves_ipv4_only_is_reported_and_replaced(wire, network, host):
    """It was started before its network had IPv6, or by an agent without IPv6."""
    Attacher(SubprocessRunner(), proxy=host.proxy, families=(4,)).attach(network)
    old = host.pid(network)
    assert host.find(network).problems == ('fe80::a9fe:a9fe is missing on tap0; attach it again',)
    assert host.attacher.attach(network) is True
    assert host.pid(network) != old
    assert curl(wire.guest, URL6) == curl(wire.guest, URL4) == f'proxy of {network.uuid}'


def test_proxy_of_a_recreated_interface_is_replaced(wire, network, host):
    """It is bound to the index of the old one, whatever the name."""
    host.attacher.attach(network)
    ip('-n', network.namespace, 'link', 'delete', 'tap0')
    wire.plug(network.namespace, 'tap0', '10.1.1.1/24')
    assert host.attacher.attach(network) is True
    assert curl(wire.guest, URL6) == f'proxy of {network.uuid}'


def test_address_is_usable_later_without_waiting(wire, router, host):
    host.attacher.attach(router, wait_for_ipv6=False)
    give_up_at = time.monotonic() + 15
    while wire.address(router.namespace, 'qr-1').get('tentative') and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert curl(wire.guest, URL6) == f'proxy of {router.uuid}'


def test_address_of_the_dhcp_agent_is_used_and_stays(wire, network, host):
    ip('-n', network.namespace, 'address', 'add', f'{interface_state.ADDRESS}/64', 'dev', 'tap0')
    host.attacher.attach(network)
    assert curl(wire.guest, URL6) == f'proxy of {network.uuid}'
    host.attacher.detach(network)
    assert wire.address(network.namespace, 'tap0')['prefixlen'] == 64


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
        self._held = []

    def asks(self, count, target=b'/'):
        """Send ``count`` requests, each from the next address."""
        namespaces.run_in(self._guest, lambda: [self._ask(target) for _ in range(count)])

    def _ask(self, target):
        sock = socket.socket(socket.AF_INET6)
        scope = socket.if_nametoindex('eth0')
        address = self._addresses[len(self._held) % ADDRESSES]
        sock.bind((address, 0, 0, scope if address.startswith('fe80') else 0))
        sock.settimeout(8)
        sock.connect((interface_state.ADDRESS, 80, 0, scope))
        self._held.append(sock)
        sock.sendall(b'GET %s HTTP/1.1\r\nHost: x\r\n\r\n' % target)
        sock.setblocking(False)

    def answers(self):
        """The number of its requests with at least the beginning of a response."""
        return sum(piece.startswith(b'HTTP/1.1 200') for piece in map(self._peek, self._held))

    def closed(self):
        """The number of its connections that were closed."""
        return sum(map(self._is_closed, self._held))

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
        for sock in self._held:
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
        guest.asks(count)
        assert neighbour()
    eventually(lambda: guest.answers() == MANY, 'all were served')
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
            guest.asks(count, b'/slow')
            assert neighbour()
        eventually(lambda: guest.closed() == MANY - kept, guest.closed)
        assert guest.answers() == 0
    finally:
        release.set()
    eventually(lambda: guest.answers() == kept, 'the requests in progress are finished')
