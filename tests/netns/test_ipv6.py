# SPDX-License-Identifier: Apache-2.0
"""fe80::a9fe:a9fe from an instance, requested with curl, through a router and without one, also with a duplicate.

::

    guest 10.1.1.2 ---[switch]--- 10.1.1.1 the router's or DHCP server's namespace
                         |
                       rival, which may have fe80::a9fe:a9fe too
"""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from metadata_wsgi.netns import interface_state
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.attachment_status import list_attachments
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.runner import SubprocessRunner

from .router_topology import METADATA, get, ip
from .switched_network import URL4, URL6, SwitchedNetwork, a_network, a_router, curl

pytestmark = pytest.mark.netns

STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))
PROGRAM = str(Path(sys.prefix, 'bin', 'quantum-ns-metadata-proxy'))


@pytest.fixture(params=['router', 'network'])
def target(request, wire):
    return a_router(wire) if request.param == 'router' else a_network(wire)


@pytest.fixture
def router(wire):
    return a_router(wire)


@pytest.fixture
def network(wire):
    return a_network(wire)


def interface_of(target):
    return 'qr-1' if target.kind == 'router' else 'tap0'


@pytest.fixture
def host(start_host):
    return start_host(STANDIN)


def link_local(wire, namespace):
    (info,) = wire._json('-n', namespace, '-6', 'address', 'show', 'dev', 'eth0')[0]['addr_info']
    return info['local']


def test_instance_is_served_over_both_families_by_the_real_proxy(wire, target, start_host):
    """The agent receives the instance's own address, without a zone, and the id of its network."""
    host = start_host(PROGRAM)
    assert host.attacher.attach(target).listener is True
    assert (curl(wire.guest, URL6), curl(wire.guest, URL4)) == ('this', 'this')
    six, four = (head.decode().lower() for head in host.agent.requests)
    assert f'\r\nx-forwarded-for: {link_local(wire, wire.guest)}\r\n' in six
    assert '\r\nx-forwarded-for: 10.1.1.2\r\n' in four
    assert all(f'\r\nx-quantum-{target.kind}-id: {target.uuid}\r\n' in head for head in (four, six))
    assert host.find(target).problems == ()
    # Again, and nothing is done; then off, and nothing is left.
    pid = host.pid(target)
    assert host.attacher.attach(target).listener is False
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
    assert host.attacher.attach(target).listener is True
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
    assert host.attacher.attach(target).listener is False
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
    attaching.join(60)
    assert caplog.messages == []
    assert curl(wire.guest, URL6) == f'proxy of {router.uuid}'


def test_interface_added_later_is_reported_and_gets_the_address(wire, router, host):
    host.attacher.attach(router)
    other = SwitchedNetwork()
    try:
        other.plug(router.namespace, 'qr-2', '10.2.2.1/24')
        assert host.find(router).problems == ('fe80::a9fe:a9fe is missing on qr-2; attach it again',)
        assert host.attacher.attach(router).listener is False
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
    assert host.attacher.attach(network).listener is True
    assert host.pid(network) != old
    assert curl(wire.guest, URL6) == curl(wire.guest, URL4) == f'proxy of {network.uuid}'


def test_proxy_of_a_recreated_interface_is_replaced(wire, network, host):
    """It is bound to the index of the old one, whatever the name."""
    host.attacher.attach(network)
    ip('-n', network.namespace, 'link', 'delete', 'tap0')
    wire.plug(network.namespace, 'tap0', '10.1.1.1/24')
    assert host.attacher.attach(network).listener is True
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
