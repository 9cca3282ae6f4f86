# SPDX-License-Identifier: Apache-2.0
"""fe80::a9fe:a9fe as a guest has it: asked with curl, through a router and without one, also where a rival has it.

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

from metadata_wsgi.netns import interface_state, namespaces, proxy_process
from metadata_wsgi.netns.attach import Attachments, Proxy
from metadata_wsgi.netns.attachment_status import attached
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import Place
from metadata_wsgi.server.worker import MAX_CONNECTIONS_PER_ADDRESS
from tests.rawserver import RawServer, keeps_saying

from .router_topology import METADATA, get, ip

pytestmark = pytest.mark.netns

STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))
PROGRAM = str(Path(sys.prefix, 'bin', 'quantum-ns-metadata-proxy'))
URL6 = f'http://[{interface_state.ADDRESS}%25eth0]/openstack'
URL4 = f'http://{METADATA}/openstack'
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nthis'


class Wire:
    """A switch, a guest, and whoever else is plugged in."""

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
    wire = Wire()
    try:
        yield wire
    finally:
        wire.remove()


@pytest.fixture(params=['router', 'network'])
def place(request, wire):
    return a_router(wire) if request.param == 'router' else a_network(wire)


@pytest.fixture
def router(wire):
    return a_router(wire)


@pytest.fixture
def network(wire):
    return a_network(wire)


def a_router(wire):
    place = Place.of('router', str(uuid.uuid4()))
    wire.plug(wire.namespace(place.namespace), 'qr-1', '10.1.1.1/24')
    ip('-n', wire.guest, 'route', 'add', 'default', 'via', '10.1.1.1')
    return place


def a_network(wire):
    place = Place.of('network', str(uuid.uuid4()))
    wire.plug(wire.namespace(place.namespace), 'tap0', '10.1.1.1/24')
    ip('-n', wire.guest, 'route', 'add', METADATA, 'via', '10.1.1.1')
    return place


def interface_of(place):
    return 'qr-1' if place.kind == 'router' else 'tap0'


class Host:
    """A state directory, attachments that start ``program``, and in the agent's place one who records what he hears."""

    def __init__(self, state_path, program):
        self.state_path = str(state_path)
        self.proxy = Proxy(program=program, state_path=self.state_path, log_dir=self.state_path)
        self.attachments = Attachments(SubprocessRunner(), proxy=self.proxy, end_within_s=5)
        self.agent = RawServer(keeps_saying(OK), path=f'{self.state_path}/metadata_proxy')

    def find(self, place):
        found = attached(Iptables(SubprocessRunner()), state_path=self.state_path)
        return next(one for one in found if one.uuid == place.uuid)

    def pid(self, place):
        return proxy_process.active(self.proxy.pid_file(place.uuid), place.uuid)

    def close(self):
        for file in Path(self.state_path).glob('external/pids/*.pid'):
            proxy_process.disable(str(file), file.stem, patience_s=5)
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
    """The body, or '' when nobody answered."""
    argv = ['ip', 'netns', 'exec', namespace, 'curl', '-gsS', '-m', '8', url]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def link_local(wire, namespace):
    (info,) = wire._json('-n', namespace, '-6', 'address', 'show', 'dev', 'eth0')[0]['addr_info']
    return info['local']


def test_a_guest_is_served_over_both_families_by_the_real_proxy(wire, place, start_host):
    """The agent hears the guest's own address, without a zone, and whose network it is."""
    host = start_host(PROGRAM)
    assert host.attachments.attach(place) is True
    assert (curl(wire.guest, URL6), curl(wire.guest, URL4)) == ('this', 'this')
    six, four = (head.decode().lower() for head in host.agent.requests)
    assert f'\r\nx-forwarded-for: {link_local(wire, wire.guest)}\r\n' in six
    assert '\r\nx-forwarded-for: 10.1.1.2\r\n' in four
    assert all(f'\r\nx-quantum-{place.kind}-id: {place.uuid}\r\n' in head for head in (four, six))
    assert host.find(place).problems == ()
    # Again, and nothing is done; then off, and nothing is left.
    pid = host.pid(place)
    assert host.attachments.attach(place) is False
    assert host.pid(place) == pid
    assert host.attachments.detach(place) is True
    assert wire.address(place.namespace, interface_of(place)) is None
    assert host.attachments.detach(place) is False


def test_nobody_takes_it_for_the_source_of_the_routers_own_packets(wire, router, host):
    """A guest would lose its default route at detach if it came from there."""
    host.attachments.attach(router)
    found = wire.address(router.namespace, 'qr-1')
    assert (found['prefixlen'], found['deprecated'], found['preferred_life_time']) == (128, True, 0)


@pytest.mark.parametrize('kind', ['router', 'network'])
def test_a_rival_costs_ipv6_only_and_is_named_until_he_is_gone(wire, host, kind, caplog):
    place = a_router(wire) if kind == 'router' else a_network(wire)
    wire.rival_takes_it()
    assert host.attachments.attach(place) is True
    assert len(caplog.messages) == 1
    assert f'is not on {interface_of(place)}, because {wire.mac(wire.rival)} on its network has it' in caplog.text
    assert wire.address(place.namespace, interface_of(place)) is None
    assert get(wire.guest, METADATA) == f'proxy of {place.uuid}'
    found = host.find(place)
    # Another DHCP agent of the same network is no fault of anybody.
    told, silent = (found.problems, found.notes) if kind == 'router' else (found.notes, found.problems)
    assert (len(told), silent) == (1, ())
    assert wire.mac(wire.rival) in told[0]
    caplog.clear()
    wire.rival_leaves()
    assert host.attachments.attach(place) is False
    assert caplog.messages == []
    assert curl(wire.guest, URL6) == f'proxy of {place.uuid}'
    assert (host.find(place).problems, host.find(place).notes) == ((), ())


def test_a_rival_who_leaves_while_it_is_tried_again(wire, router, host, caplog):
    """IPv4 is served meanwhile."""
    wire.rival_takes_it()
    attaching = threading.Thread(target=host.attachments.attach, args=(router,))
    attaching.start()
    give_up_at = time.monotonic() + 15
    while not get(wire.guest, METADATA, timeout_s=1) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert attaching.is_alive()
    wire.rival_leaves()
    attaching.join(30)
    assert caplog.messages == []
    assert curl(wire.guest, URL6) == f'proxy of {router.uuid}'


def test_an_interface_that_came_later_is_seen_and_gets_it(wire, router, host):
    host.attachments.attach(router)
    other = Wire()
    try:
        other.plug(router.namespace, 'qr-2', '10.2.2.1/24')
        assert host.find(router).problems == ('fe80::a9fe:a9fe is missing on qr-2; attach it again',)
        assert host.attachments.attach(router) is False
        assert host.find(router).problems == ()
        assert curl(other.guest, URL6) == f'proxy of {router.uuid}'
    finally:
        other.remove()


def test_two_interfaces_on_one_network_are_no_rivals(wire, router, host, caplog):
    """An IPv4 and an IPv6 subnet of one network have an interface each."""
    wire.plug(router.namespace, 'qr-2', '10.1.2.1/24')
    host.attachments.attach(router)
    having = [name for name in ('qr-1', 'qr-2') if wire.address(router.namespace, name)]
    assert len(having) == 1
    assert curl(wire.guest, URL6) == f'proxy of {router.uuid}'
    assert (host.find(router).problems, caplog.messages) == ((), [])


def test_an_interface_without_ipv6_lacks_nothing(wire, router, host, caplog):
    disabled = 'net.ipv6.conf.qr-1.disable_ipv6=1'
    subprocess.run(['ip', 'netns', 'exec', router.namespace, 'sysctl', '-qw', disabled], check=True)
    host.attachments.attach(router)
    assert get(wire.guest, METADATA) == f'proxy of {router.uuid}'
    assert (host.find(router).problems, caplog.messages) == ((), [])


def test_a_kernel_without_ipv6_lacks_nothing(wire, place, host):
    attachments = Attachments(SubprocessRunner(), proxy=host.proxy, families=(4,))
    attachments.attach(place)
    assert wire.address(place.namespace, interface_of(place)) is None
    assert get(wire.guest, METADATA) == f'proxy of {place.uuid}'
    found = attached(Iptables(SubprocessRunner()), state_path=host.state_path, families=(4,))
    assert [one.problems for one in found if one.uuid == place.uuid] == [()]


def test_a_proxy_that_serves_ipv4_only_is_seen_and_replaced(wire, network, host):
    """It was started before its network had IPv6, or by an agent that knows none."""
    Attachments(SubprocessRunner(), proxy=host.proxy, families=(4,)).attach(network)
    old = host.pid(network)
    assert host.find(network).problems == ('fe80::a9fe:a9fe is missing on tap0; attach it again',)
    assert host.attachments.attach(network) is True
    assert host.pid(network) != old
    assert curl(wire.guest, URL6) == curl(wire.guest, URL4) == f'proxy of {network.uuid}'


def test_a_proxy_of_an_interface_that_was_made_anew_is_replaced(wire, network, host):
    """It is bound to the number of the old one, whatever the name."""
    host.attachments.attach(network)
    ip('-n', network.namespace, 'link', 'delete', 'tap0')
    wire.plug(network.namespace, 'tap0', '10.1.1.1/24')
    assert host.attachments.attach(network) is True
    assert curl(wire.guest, URL6) == f'proxy of {network.uuid}'


def test_who_does_not_wait_finds_it_there_a_little_later(wire, router, host):
    host.attachments.attach(router, wait_for_ipv6=False)
    give_up_at = time.monotonic() + 15
    while wire.address(router.namespace, 'qr-1').get('tentative') and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert curl(wire.guest, URL6) == f'proxy of {router.uuid}'


def test_the_dhcp_agents_own_address_is_used_and_stays(wire, network, host):
    ip('-n', network.namespace, 'address', 'add', f'{interface_state.ADDRESS}/64', 'dev', 'tap0')
    host.attachments.attach(network)
    assert curl(wire.guest, URL6) == f'proxy of {network.uuid}'
    host.attachments.detach(network)
    assert wire.address(network.namespace, 'tap0')['prefixlen'] == 64


SHARE, MANY = 2 * MAX_CONNECTIONS_PER_ADDRESS, 2 * MAX_CONNECTIONS_PER_ADDRESS + 44
"""What the addresses of one /64 may hold together, and how many connections the guest below makes."""
ADDRESSES = 300
"""How many it has: the kernel knows no more than 1,024 neighbours at a time."""


class Crowd:
    """A guest that asks with ``ADDRESSES`` of the /64 ``prefix`` in turns and keeps every connection."""

    def __init__(self, wire, router, prefix):
        self._guest = wire.guest
        self._addresses = [f'{prefix}1:{number:x}' for number in range(1, ADDRESSES + 1)]
        lines = [f'address add {address}/64 dev eth0 nodad\n' for address in self._addresses]
        subprocess.run(['ip', '-n', wire.guest, '-batch', '-'], input=''.join(lines).encode(), check=True)
        if not prefix.startswith('fe80'):
            ip('-n', router.namespace, 'address', 'add', f'{prefix}1/64', 'dev', 'qr-1', 'nodad')
        self._held = []

    def asks(self, count, target=b'/'):
        """So many times, each with the next of its addresses."""
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
        """How many of its requests have an answer, or the beginning of one."""
        return sum(piece.startswith(b'HTTP/1.1 200') for piece in map(self._peek, self._held))

    def closed(self):
        """How many of its connections were closed."""
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
def crowd(wire, router):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def gather(prefix):
            made = Crowd(wire, router, prefix)
            stack.callback(made.close)
            return made

        yield gather


@pytest.fixture
def neighbour(wire):
    """Asks once over each family; whether both were answered."""
    ip('-n', wire.rival, 'route', 'add', 'default', 'via', '10.1.1.1')
    return lambda: [curl(wire.rival, url) for url in (URL6, URL4)] == ['this', 'this']


def until(true, what):
    give_up_at = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.05)


@pytest.mark.parametrize('prefix', ['2001:db8::', 'fe80::'])
def test_many_addresses_of_one_guest_keep_no_more_than_the_share_of_their_64(
    wire, router, start_host, crowd, neighbour, prefix
):
    """Who waits longest goes, so that the next is served: a neighbour, too, whose link-local address is of the same."""
    start_host(PROGRAM).attachments.attach(router)
    guest = crowd(prefix)
    for count in (SHARE - 1, 1, MANY - SHARE):
        guest.asks(count)
        assert neighbour()
    until(lambda: guest.answers() == MANY, 'all were served')
    # Where he is of the same /64 the neighbour had one of them for a moment, once it was full.
    until(lambda: MANY - guest.closed() in (SHARE, SHARE - 1 if prefix == 'fe80::' else SHARE), guest.closed)


def test_many_addresses_of_one_guest_are_refused_where_the_share_is_in_use(wire, router, start_host, crowd, neighbour):
    """The agent has them all under way: none can be closed for another."""
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
    host.attachments.attach(router)
    guest = crowd('2001:db8::')
    try:
        for count in (SHARE, MANY - SHARE):
            guest.asks(count, b'/slow')
            assert neighbour()
        until(lambda: guest.closed() == MANY - SHARE, guest.closed)
        assert guest.answers() == 0
    finally:
        release.set()
    until(lambda: guest.answers() == SHARE, 'what is under way is finished')
