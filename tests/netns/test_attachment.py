# SPDX-License-Identifier: Apache-2.0
"""Attach, attached, detach in real namespaces, with a stand-in for the proxy."""

import os
import select
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import link_local, namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher, Changes
from metadata_wsgi.netns.attachment_status import NO_LISTENER, list_attachments
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import AttachTarget
from tests.e2e.conftest import eventually

from .router_topology import METADATA, get, ip, saved_rules

pytestmark = pytest.mark.netns

STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))


class Host:
    """One state directory; what was attached there is detached at the end."""

    def __init__(self, state_path):
        self.state_path = str(state_path)
        self.proxy = ProxyCommand(program=STANDIN, state_path=self.state_path)
        self.attacher = Attacher(SubprocessRunner(), proxy=self.proxy, stop_timeout_s=5)

    def pid(self, uuid):
        return proxy_process.running_pid(self.proxy.pid_file(uuid), uuid)

    def statuses(self):
        return list_attachments(Iptables(SubprocessRunner()), state_path=self.state_path)

    def find(self, uuid):
        return next((found for found in self.statuses() if found.uuid == uuid), None)

    def close(self):
        for file in Path(self.state_path).glob('external/pids/*.pid'):
            proxy_process.stop(str(file), file.stem, timeout_s=1)


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host.close()


@pytest.fixture
def router(topology):
    return AttachTarget.of('router', topology.uuid)


@pytest.fixture
def network():
    """An isolated network: a DHCP namespace with a tap, and a guest that has no router."""
    target = AttachTarget.of('network', str(uuid.uuid4()))
    guest = f'guest-{target.uuid}'
    try:
        for name in (target.namespace, guest):
            ip('netns', 'add', name)
        ip('-n', target.namespace, 'link', 'add', 'tap0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guest)
        for name, link, cidr in ((target.namespace, 'tap0', '10.1.1.3/24'), (guest, 'eth0', '10.1.1.2/24')):
            ip('-n', name, 'address', 'add', cidr, 'dev', link)
            ip('-n', name, 'link', 'set', link, 'up')
        ip('-n', guest, 'route', 'add', METADATA, 'via', '10.1.1.3')
        yield target
    finally:
        for name in (target.namespace, guest):
            if namespaces.exists(name):
                ip('netns', 'delete', name)


def test_interrupted_attach_leaves_no_rules(host, router, topology, monkeypatch, interrupt):
    """Ctrl-C between the rules and the listener."""
    begin = link_local.begin

    def interrupted(table, pattern):
        interrupt()
        time.sleep(0.2)
        return begin(table, pattern)

    monkeypatch.setattr(link_local, 'begin', interrupted)
    with pytest.raises(KeyboardInterrupt):
        host.attacher.attach(router)
    assert Iptables(SubprocessRunner()).ours(topology.router) == []


def test_router_is_attached_served_listed_and_detached_without_a_trace(topology, router, host):
    before = saved_rules(topology.router, 'iptables'), saved_rules(topology.router, 'ip6tables')
    assert host.attacher.attach(router).listener is True
    assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'
    found = host.find(topology.uuid)
    assert (found.kind, found.namespace, found.pid) == ('router', topology.router, host.pid(topology.uuid))
    assert (found.port, found.rules, found.problems) == (9697, 'yes', ())
    pid = found.pid
    assert host.attacher.detach(router) is True
    assert (saved_rules(topology.router, 'iptables'), saved_rules(topology.router, 'ip6tables')) == before
    # Ended; its parent, the host's first process, may still have to notice.
    eventually(lambda: namespaces.name_of(pid) is None, 'it has ended')
    assert not os.path.exists(host.proxy.pid_file(topology.uuid))
    assert host.find(topology.uuid) is None
    assert host.attacher.detach(router) is False


def test_second_attach_adopts_the_process(topology, router, host):
    host.attacher.attach(router)
    pid = host.pid(topology.uuid)
    assert host.attacher.attach(router).listener is False
    assert host.pid(topology.uuid) == pid


def test_killed_proxy_is_reported_and_replaced(topology, router, host):
    host.attacher.attach(router)
    pidfd = os.pidfd_open(host.pid(topology.uuid))
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    # Its command line is gone before its sockets are; only then the port is free.
    eventually(lambda: select.select([pidfd], [], [], 0)[0], 'it has ended')
    os.close(pidfd)
    with open(host.proxy.pid_file(topology.uuid)) as file:
        assert file.read()
    assert host.find(topology.uuid).problems == (NO_LISTENER,)
    assert host.attacher.attach(router).listener is True
    assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'


def test_proxy_on_another_port_is_replaced_with_its_rules(topology, router, host):
    host.attacher.attach(router, port=9000)
    old = host.pid(topology.uuid)
    assert host.attacher.attach(router).listener is True
    assert host.pid(topology.uuid) != old
    assert '9000' not in str(saved_rules(topology.router, 'iptables'))
    assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'


def test_stale_proxy_of_a_recreated_namespace_is_replaced(topology, router, host):
    """Its pid lives and its command line is right, but no guest reaches it."""
    host.attacher.attach(router)
    old = host.pid(topology.uuid)
    topology.remove()
    topology.make()
    assert host.pid(topology.uuid) == old
    assert any('another namespace' in problem for problem in host.find(topology.uuid).problems)
    assert host.attacher.attach(router).listener is True
    assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'


def test_missing_rules_are_reported_and_added_again(topology, router, host):
    host.attacher.attach(router)
    subprocess.run(['ip', 'netns', 'exec', topology.router, 'iptables', '-t', 'nat', '-F'], check=True)
    assert (host.find(topology.uuid).rules, len(host.find(topology.uuid).problems)) == ('partly', 1)
    assert host.attacher.attach(router) == Changes(False, ('rules were added',))
    assert host.find(topology.uuid).problems == ()
    assert get(topology.guest, METADATA) == f'proxy of {topology.uuid}'


def test_rules_without_a_proxy_are_listed_and_detached(topology, router, host):
    host.attacher.attach(router)
    proxy_process.stop(host.proxy.pid_file(topology.uuid), topology.uuid)
    found = host.find(topology.uuid)
    assert (found.rules, found.pid, found.namespace) == ('yes', None, topology.router)
    assert host.attacher.detach(found.target) is True
    assert host.find(topology.uuid) is None


def test_proxy_of_a_deleted_namespace_is_stopped(topology, router, host):
    host.attacher.attach(router)
    topology.remove()
    assert host.find(topology.uuid).namespace is None
    assert host.attacher.detach(router) is True
    assert host.pid(topology.uuid) is None


def test_namespace_of_another_name(topology, host):
    target = AttachTarget.of('router', str(uuid.uuid4()), topology.router)
    host.attacher.attach(target)
    assert get(topology.guest, METADATA) == f'proxy of {target.uuid}'
    assert (host.find(target.uuid).target, host.find(target.uuid).problems) == (target, ())
    assert host.attacher.detach(target) is True


def test_proxy_that_cannot_start_is_reported_with_its_error_and_leaves_no_rule(topology, router, host):
    refusing = Attacher(
        SubprocessRunner(), proxy=ProxyCommand(program=STANDIN, state_path=host.state_path + '/refuses')
    )
    with pytest.raises(NetnsError, match='standin: cannot work here'):
        refusing.attach(router)
    assert saved_rules(topology.router, 'iptables') == []


def test_proxy_that_never_listens_is_a_start_timeout(topology, router, host):
    silent = Attacher(
        SubprocessRunner(), proxy=ProxyCommand(program='true', state_path=host.state_path), start_timeout_s=0.1
    )
    with pytest.raises(NetnsError, match=r'no process, pid file .* see its log'):
        silent.attach(router)
    silent.detach(router)


def test_network_is_attached_by_its_address_without_rules(network, host):
    assert host.attacher.attach(network).listener is True
    assert get(f'guest-{network.uuid}', METADATA) == f'proxy of {network.uuid}'
    # Bound to the one address, so that the DHCP server's own port 80 stays closed.
    assert get(f'guest-{network.uuid}', '10.1.1.3') == ''
    assert saved_rules(network.namespace, 'iptables') == []
    found = host.find(network.uuid)
    assert (found.kind, found.port, found.rules, found.problems) == ('network', 80, 'yes', ())
    assert host.attacher.attach(network) == Changes(False)
    ip('-n', network.namespace, 'address', 'del', f'{METADATA}/16', 'dev', 'tap0')
    assert host.attacher.attach(network) == Changes(False, (f'{METADATA} was added',))
    assert host.attacher.detach(network) is True
    assert METADATA not in addresses(network)
    assert '10.1.1.3/24' in addresses(network)
    assert host.find(network.uuid) is None


def test_address_of_the_dhcp_agent_stays(network, host):
    ip('-n', network.namespace, 'address', 'add', f'{METADATA}/16', 'dev', 'tap0')
    host.attacher.attach(network)
    assert addresses(network).count(METADATA) == 1
    host.attacher.detach(network)
    assert addresses(network).count(METADATA) == 1


def test_ambiguous_interface_has_to_be_given(network, host):
    guest = f'guest-{network.uuid}'
    ip('-n', network.namespace, 'link', 'add', 'tap1', 'type', 'veth', 'peer', 'name', 'eth1', 'netns', guest)
    with pytest.raises(NetnsError, match=r'choose the interface for .* with --interface; there are: .*tap0, tap1'):
        host.attacher.attach(network)
    with pytest.raises(NetnsError, match='there is no interface tap2'):
        host.attacher.attach(network, interface='tap2')
    host.attacher.attach(network, interface='tap0')
    assert get(f'guest-{network.uuid}', METADATA) == f'proxy of {network.uuid}'


def addresses(network):
    return subprocess.run(
        ['ip', '-n', network.namespace, '-4', 'address', 'show'], check=True, capture_output=True, text=True
    ).stdout
