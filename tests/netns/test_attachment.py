# SPDX-License-Identifier: Apache-2.0
"""Attach, attached, detach in real namespaces, with a stand-in for the proxy."""

import os
import select
import signal
import subprocess
import uuid
from pathlib import Path

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, proxy_process
from metadata_wsgi.netns.attach import Attachments, Proxy
from metadata_wsgi.netns.attachment_status import NOBODY_LISTENS, attached
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import Place
from tests.e2e.conftest import eventually

from .router_topology import METADATA, get, ip, saved

pytestmark = pytest.mark.netns

STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))


class Host:
    """One state directory; what was attached there is detached at the end."""

    def __init__(self, state_path):
        self.state_path = str(state_path)
        self.proxy = Proxy(program=STANDIN, state_path=self.state_path)
        self.attachments = Attachments(SubprocessRunner(), proxy=self.proxy, end_within_s=5)

    def pid(self, uuid):
        return proxy_process.active(self.proxy.pid_file(uuid), uuid)

    def attached(self):
        return attached(Iptables(SubprocessRunner()), state_path=self.state_path)

    def find(self, uuid):
        return next((found for found in self.attached() if found.uuid == uuid), None)

    def close(self):
        for file in Path(self.state_path).glob('external/pids/*.pid'):
            proxy_process.disable(str(file), file.stem, patience_s=1)


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host.close()


@pytest.fixture
def router(world):
    return Place.of('router', world.uuid)


@pytest.fixture
def network():
    """An isolated network: a DHCP namespace with a tap, and a guest that has no router."""
    place = Place.of('network', str(uuid.uuid4()))
    guest = f'guest-{place.uuid}'
    try:
        for name in (place.namespace, guest):
            ip('netns', 'add', name)
        ip('-n', place.namespace, 'link', 'add', 'tap0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guest)
        for name, link, cidr in ((place.namespace, 'tap0', '10.1.1.3/24'), (guest, 'eth0', '10.1.1.2/24')):
            ip('-n', name, 'address', 'add', cidr, 'dev', link)
            ip('-n', name, 'link', 'set', link, 'up')
        ip('-n', guest, 'route', 'add', METADATA, 'via', '10.1.1.3')
        yield place
    finally:
        for name in (place.namespace, guest):
            if namespaces.exists(name):
                ip('netns', 'delete', name)


def test_a_router_is_attached_served_listed_and_detached_without_a_trace(world, router, host):
    before = saved(world.router, 'iptables'), saved(world.router, 'ip6tables')
    assert host.attachments.attach(router) is True
    assert get(world.guest, METADATA) == f'proxy of {world.uuid}'
    found = host.find(world.uuid)
    assert (found.kind, found.namespace, found.pid) == ('router', world.router, host.pid(world.uuid))
    assert (found.port, found.rules, found.problems) == (9697, 'yes', ())
    pid = found.pid
    assert host.attachments.detach(router) is True
    assert (saved(world.router, 'iptables'), saved(world.router, 'ip6tables')) == before
    # Ended; its parent, the host's first process, may still have to notice.
    eventually(lambda: namespaces.name_of(pid) is None, 'it has ended')
    assert not os.path.exists(host.proxy.pid_file(world.uuid))
    assert host.find(world.uuid) is None
    assert host.attachments.detach(router) is False


def test_a_second_time_adopts(world, router, host):
    host.attachments.attach(router)
    pid = host.pid(world.uuid)
    assert host.attachments.attach(router) is False
    assert host.pid(world.uuid) == pid


def test_a_killed_proxy_is_seen_and_replaced(world, router, host):
    host.attachments.attach(router)
    pidfd = os.pidfd_open(host.pid(world.uuid))
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    # Its command line is gone before its sockets are; only then the port is free.
    eventually(lambda: select.select([pidfd], [], [], 0)[0], 'it has ended')
    os.close(pidfd)
    with open(host.proxy.pid_file(world.uuid)) as file:
        assert file.read()
    assert host.find(world.uuid).problems == (NOBODY_LISTENS,)
    assert host.attachments.attach(router) is True
    assert get(world.guest, METADATA) == f'proxy of {world.uuid}'


def test_a_proxy_on_another_port_is_replaced_with_its_rules(world, router, host):
    host.attachments.attach(router, port=9000)
    old = host.pid(world.uuid)
    assert host.attachments.attach(router) is True
    assert host.pid(world.uuid) != old
    assert '9000' not in str(saved(world.router, 'iptables'))
    assert get(world.guest, METADATA) == f'proxy of {world.uuid}'


def test_a_proxy_left_in_a_namespace_that_was_made_anew_is_replaced(world, router, host):
    """Its pid lives and its command line is right, but no guest reaches it."""
    host.attachments.attach(router)
    old = host.pid(world.uuid)
    world.remove()
    world.make()
    assert host.pid(world.uuid) == old
    assert any('another namespace' in problem for problem in host.find(world.uuid).problems)
    assert host.attachments.attach(router) is True
    assert get(world.guest, METADATA) == f'proxy of {world.uuid}'


def test_missing_rules_are_seen_and_laid_again(world, router, host):
    host.attachments.attach(router)
    subprocess.run(['ip', 'netns', 'exec', world.router, 'iptables', '-t', 'nat', '-F'], check=True)
    assert (host.find(world.uuid).rules, len(host.find(world.uuid).problems)) == ('partly', 1)
    assert host.attachments.attach(router) is False
    assert host.find(world.uuid).problems == ()
    assert get(world.guest, METADATA) == f'proxy of {world.uuid}'


def test_rules_without_a_proxy_are_listed_and_detached(world, router, host):
    host.attachments.attach(router)
    proxy_process.disable(host.proxy.pid_file(world.uuid), world.uuid)
    found = host.find(world.uuid)
    assert (found.rules, found.pid, found.namespace) == ('yes', None, world.router)
    assert host.attachments.detach(found.place) is True
    assert host.find(world.uuid) is None


def test_a_proxy_whose_namespace_is_gone_is_ended(world, router, host):
    host.attachments.attach(router)
    world.remove()
    assert host.find(world.uuid).namespace is None
    assert host.attachments.detach(router) is True
    assert host.pid(world.uuid) is None


def test_a_namespace_of_another_name(world, host):
    place = Place.of('router', str(uuid.uuid4()), world.router)
    host.attachments.attach(place)
    assert get(world.guest, METADATA) == f'proxy of {place.uuid}'
    assert (host.find(place.uuid).place, host.find(place.uuid).problems) == (place, ())
    assert host.attachments.detach(place) is True


def test_a_proxy_that_cannot_start_is_reported_in_its_own_words_and_the_router_is_closed(world, router, host):
    refusing = Attachments(SubprocessRunner(), proxy=Proxy(program=STANDIN, state_path=host.state_path + '/refuses'))
    with pytest.raises(NetnsError, match='standin: cannot work here'):
        refusing.attach(router)
    assert '-A FORWARD -d 169.254.169.254/32' in str(saved(world.router, 'iptables'))
    refusing.detach(router)


def test_a_proxy_that_never_listens_is_given_up_with_a_reason(world, router, host):
    silent = Attachments(
        SubprocessRunner(), proxy=Proxy(program='true', state_path=host.state_path), start_within_s=0.1
    )
    with pytest.raises(NetnsError, match=r'no process, pid file .* its log says why'):
        silent.attach(router)
    silent.detach(router)


def test_a_network_is_attached_by_its_address_and_without_rules(network, host):
    assert host.attachments.attach(network) is True
    assert get(f'guest-{network.uuid}', METADATA) == f'proxy of {network.uuid}'
    # Bound to the one address, so that the DHCP server's own port 80 stays closed.
    assert get(f'guest-{network.uuid}', '10.1.1.3') == ''
    assert saved(network.namespace, 'iptables') == []
    found = host.find(network.uuid)
    assert (found.kind, found.port, found.rules, found.problems) == ('network', 80, 'yes', ())
    assert host.attachments.attach(network) is False
    assert host.attachments.detach(network) is True
    assert METADATA not in addresses(network)
    assert '10.1.1.3/24' in addresses(network)
    assert host.find(network.uuid) is None


def test_the_dhcp_agents_own_address_stays(network, host):
    ip('-n', network.namespace, 'address', 'add', f'{METADATA}/16', 'dev', 'tap0')
    host.attachments.attach(network)
    assert addresses(network).count(METADATA) == 1
    host.attachments.detach(network)
    assert addresses(network).count(METADATA) == 1


def test_an_interface_that_cannot_be_guessed_is_asked_for(network, host):
    guest = f'guest-{network.uuid}'
    ip('-n', network.namespace, 'link', 'add', 'tap1', 'type', 'veth', 'peer', 'name', 'eth1', 'netns', guest)
    with pytest.raises(NetnsError, match=r'say which interface gets 169\.254\.169\.254; there are: .*tap0, tap1'):
        host.attachments.attach(network)
    with pytest.raises(NetnsError, match='there is no interface tap2'):
        host.attachments.attach(network, interface='tap2')
    host.attachments.attach(network, interface='tap0')
    assert get(f'guest-{network.uuid}', METADATA) == f'proxy of {network.uuid}'


def addresses(network):
    return subprocess.run(
        ['ip', '-n', network.namespace, '-4', 'address', 'show'], check=True, capture_output=True, text=True
    ).stdout
