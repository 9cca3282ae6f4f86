# SPDX-License-Identifier: Apache-2.0
"""attach --mode shared and one_hop in real namespaces, with the real programs: identity, restarts, mode changes."""

import os
import signal
import subprocess
import urllib.request
import uuid
from pathlib import Path

import pytest

from metadata_wsgi.netns import namespaces
from tests.cloud import Cloud
from tests.e2e.conftest import eventually

from .keeper_host import TARGET, KeeperHost, RequestLoad, get_instance_id
from .router_topology import METADATA, RouterTopology, ip, saved_rules

pytestmark = pytest.mark.netns

KEPT = ('shared', 'one_hop')


@pytest.fixture
def host(directory):
    with Cloud(directory) as cloud:
        made = KeeperHost(directory, cloud)
        try:
            yield made.start()
        finally:
            made.close()


@pytest.fixture
def topologies():
    """Two routers whose guests have the same address: router-a's and router-b's."""
    made = [RouterTopology(), RouterTopology()]
    try:
        for topology in made:
            topology.make()
        yield made
    finally:
        for topology in made:
            topology.remove()


@pytest.fixture
def isolated():
    """network-c's DHCP namespace, and its guest."""
    place, guest = f'qdhcp-{uuid.uuid4()}', f'guest-{uuid.uuid4()}'
    try:
        for name in (place, guest):
            ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('-n', place, 'link', 'add', 'tap0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guest)
        for name, link, cidr in ((place, 'tap0', '10.1.1.3/24'), (guest, 'eth0', '10.1.1.2/24')):
            ip('-n', name, 'address', 'add', cidr, 'dev', link)
            ip('-n', name, 'link', 'set', link, 'up')
        ip('-n', guest, 'route', 'add', METADATA, 'via', '10.1.1.3')
        yield place, guest
    finally:
        for name in (place, guest):
            ip('netns', 'delete', name)


@pytest.fixture
def routers(topologies, tmp_path):
    """The options that name both routers."""
    listed = tmp_path / 'routers'
    lines = [
        f'router {id_} {topology.router}\n' for id_, topology in zip(('router-a', 'router-b'), topologies, strict=True)
    ]
    listed.write_text('# two of them\n\n' + ''.join(lines))
    return ('--file', str(listed))


@pytest.fixture
def load(topologies):
    """Two connections of each guest send requests until the end of the test."""
    started = []

    def start():
        guests = [
            (topology.guest, instance)
            for topology, instance in zip(topologies, ('instance-a', 'instance-b'), strict=True)
        ]
        started.append(RequestLoad(guests * 2))
        started[-1].more()
        return started[-1]

    yield start
    for one in started:
        one.stop()


def curl(guest, *words):
    command = ['ip', 'netns', 'exec', guest, 'curl', '-gs', '-m', '20', *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize('mode', KEPT)
def test_each_instance_gets_its_own_metadata_and_detach_leaves_no_trace(host, topologies, routers, mode):
    before = [saved_rules(topology.router, program) for topology in topologies for program in ('iptables', 'ip6tables')]
    host.attach(mode, *routers)
    answers = [curl(topology.guest, f'http://{METADATA}{TARGET}') for topology in topologies]
    assert ['instance-a' in answers[0], 'instance-b' in answers[1]] == [True, True], (answers, host.text())
    code, out, _ = host.metadata_wsgi('attached')
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [line[:2] + line[3:] for line in sorted(lines)] == [
        ['router', 'router-a', mode, '-', '9697', 'yes'],
        ['router', 'router-b', mode, '-', '9697', 'yes'],
    ]
    assert code == 0
    assert host.metadata_wsgi('detach', *routers)[:2] == (
        0,
        'router router-a is detached\nrouter router-b is detached\n',
    )
    assert before == [
        saved_rules(topology.router, program) for topology in topologies for program in ('iptables', 'ip6tables')
    ]
    assert host.metadata_wsgi('detach', *routers)[1].count('was not attached') == 2
    # Deleted for good: no socket of anybody keeps the namespace.
    assert host.attachments.entries() == []


@pytest.mark.parametrize('mode', KEPT)
def test_identity_headers_of_an_instance_are_ignored(host, topologies, routers, mode):
    host.attach(mode, *routers)
    headers = [f'X-{prefix}-Router-ID: router-b' for prefix in ('Quantum', 'Neutron')]
    headers += ['X-Forwarded-For: 10.1.1.9', 'X-Instance-ID: instance-b', 'X_Quantum_Router_ID: router-b']
    options = [word for header in headers for word in ('-H', header)]
    assert 'instance-a' in curl(topologies[0].guest, *options, f'http://{METADATA}{TARGET}')


@pytest.mark.parametrize('mode', KEPT)
def test_isolated_network_over_both_families(host, isolated, mode):
    place, guest = isolated
    words = ('--network-id', 'network-c', '--namespace', place)
    code, _, err = host.metadata_wsgi('attach', '--mode', mode, *words)
    assert (code, err) == (0, '')
    assert 'instance-c' in curl(guest, f'http://{METADATA}{TARGET}')
    # Its link-local address is in no inventory: the refusal of the lookup shows that the request arrived.
    # The guest may have to wait for duplicate address detection of its own address.
    link_local = f'http://[fe80::a9fe:a9fe%25eth0]{TARGET}'
    eventually(lambda: 'No instance' in curl(guest, link_local), 'the guest is served over IPv6')
    assert [entry.hosts for entry in host.attachments.entries()] == [(METADATA, 'fe80::a9fe:a9fe%tap0')]
    assert host.metadata_wsgi('attached')[0] == 0
    assert host.metadata_wsgi('detach', *words)[:2] == (0, 'network network-c is detached\n')


def test_second_attach_keeps_sockets_and_mode(host, topologies, routers):
    assert host.attach('one_hop', *routers).count('the agent serves it; rules were added') == 2
    assert host.attach('one_hop', *routers).count('the agent serves it already\n') == 2
    _, out, _ = host.metadata_wsgi('attach', '--no-wait', *routers)
    assert out.count('the agent serves it already\n') == 2


def test_mode_change_refuses_no_connection(host, topologies, routers, load):
    host.attach('process', *routers)
    asking = load()
    for mode in ('shared', 'one_hop', 'process', 'one_hop', 'shared', 'process'):
        host.attach(mode, *routers)
        asking.more()
        assert asking.failures == [], (mode, host.text())
        code, out, _ = host.metadata_wsgi('attached')
        assert (code, out.count(f'  {mode}  ')) == (0, 2), out
    assert host.attachments.entries() == []
    assert len(list(host.cloud.state_path.glob('external/pids/*.pid'))) == 2


def test_both_sockets_of_a_network_move_back_to_a_process(host, isolated):
    place, guest = isolated
    words = ('--network-id', 'network-c', '--namespace', place)
    for mode in ('shared', 'process'):
        assert host.metadata_wsgi('attach', '--mode', mode, *words)[0] == 0
        assert 'instance-c' in curl(guest, f'http://{METADATA}{TARGET}')
        eventually(lambda: 'No instance' in curl(guest, f'http://[fe80::a9fe:a9fe%25eth0]{TARGET}'), 'IPv6 is served')
    assert host.metadata_wsgi('attached')[0] == 0
    (pid_file,) = host.cloud.state_path.glob('external/pids/*.pid')
    assert Path(f'/proc/{int(pid_file.read_text())}/cmdline').read_text().count('--listen_fd=') == 2
    assert host.metadata_wsgi('detach', *words)[0] == 0


def test_program_without_listen_fd_is_started_after_the_keeper_closed_its_socket(host, topologies, routers):
    host.attach('shared', *routers)
    standin = Path(__file__).with_name('fake_namespace_proxy.py')
    code, _, err = host.metadata_wsgi('attach', '--no-wait', '--mode', 'process', '--program', standin, *routers)
    assert (code, err.count('connections are refused meanwhile')) == (0, 2)
    assert host.attachments.entries() == []
    assert namespaces.run_in(topologies[1].guest, body) == b'proxy of router-b'


def body():
    """The body of the response."""
    with urllib.request.urlopen(f'http://{METADATA}/', timeout=20) as response:
        return response.read()


def test_failed_targets_do_not_stop_the_others(host, topologies, tmp_path):
    """Five targets: their rules are copied."""
    listed = tmp_path / 'some'
    lines = [f'router router-{letter}\n' for letter in 'vwxy']
    listed.write_text(''.join([*lines[:2], f'router router-b {topologies[1].router}\n', *lines[2:]]))
    code, out, err = host.metadata_wsgi('attach', '--no-wait', '--mode', 'shared', '--file', str(listed))
    assert (code, out.count('is attached'), 'router-b is attached' in out) == (1, 1, True)
    assert all(f'router router-{letter}: there is no namespace' in err for letter in 'vwxy')
    assert err.splitlines()[-1] == 'metadata-wsgi: 4 of 5 failed'
    assert namespaces.run_in(topologies[1].guest, get_instance_id) == 'instance-b'


@pytest.mark.parametrize('mode', KEPT)
def test_killed_keeper_loses_no_request(host, topologies, routers, load, mode):
    host.attach(mode, *routers)
    asking = load()
    host.keeper.kill(signal.SIGKILL)
    host.keeper.wait()
    asking.more()
    code, _, err = host.metadata_wsgi('attached')
    assert (code, 'start metadata-wsgi keeper' in err) == (1, True)
    host.start_keeper()
    eventually(lambda: len(host.attachments.entries()) == 2, 'the worker has handed back what it serves')
    assert host.attach(mode, *routers).count('already') == 2
    asking.more()
    assert asking.failures == [], host.text()


def test_attach_before_the_worker_returned_its_socket_keeps_the_socket(host, topologies, routers, load):
    host.attach('shared', *routers)
    asking = load()
    host.keeper.kill(signal.SIGKILL)
    host.keeper.wait()
    host.start_keeper()
    host.attach('shared', *routers)
    asking.more()
    assert asking.failures == []


@pytest.mark.parametrize('mode', KEPT)
def test_killed_worker_refuses_no_connection(host, topologies, routers, load, mode):
    """Responses in progress are cut; connections in the accept queue are accepted by the next worker."""
    host.attach(mode, *routers)
    asking = load()
    program = host.proxy if mode == 'shared' else host.agent
    for _ in range(3):
        (worker,) = program.workers()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda former=worker: program.workers() not in ([former], []), 'a successor')
        before = asking.answered
        eventually(lambda before=before: asking.answered > before + 20, 'the successor answers')
    assert [failure for failure in asking.failures if isinstance(failure, ConnectionRefusedError)] == []
    # At most what each of the four guests had under way.
    assert len(asking.failures) <= 3 * 4, asking.failures


def test_replaced_proxy_refuses_no_connection(host, topologies, routers, load):
    host.attach('shared', *routers)
    asking = load()
    host.proxy.kill(signal.SIGTERM)
    host.proxy.wait()
    code, out, _ = host.metadata_wsgi('attached')
    assert (code, out.count('start quantum-ns-metadata-proxy --shared')) == (1, 2)
    host.proxy = host._start(
        'quantum-ns-metadata-proxy', '--shared', '--nodaemonize', f'--state_path={host.cloud.state_path}'
    )
    asking.more()
    assert asking.failures == []


def test_recreated_namespace_is_served_again_and_deleted_one_released(host, topologies, routers):
    host.attach('shared', *routers)
    topologies[0].remove()
    eventually(lambda: len(host.attachments.entries()) == 1, 'the keeper let go of what was deleted')
    topologies[0].make()
    host.attach('shared', *routers)
    assert namespaces.run_in(topologies[0].guest, get_instance_id) == 'instance-a'
    former = namespaces.identity(topologies[1].router)
    topologies[1].remove()
    topologies[1].make()
    assert namespaces.identity(topologies[1].router) != former
    assert host.attach('shared', *routers)
    assert namespaces.run_in(topologies[1].guest, get_instance_id) == 'instance-b'


def test_removed_rules_are_reported_and_added_again(host, topologies, routers):
    host.attach('one_hop', *routers)
    subprocess.run(['ip', 'netns', 'exec', topologies[0].router, 'iptables', '-t', 'nat', '-F'], check=True)
    code, out, _ = host.metadata_wsgi('attached')
    assert (code, out.count('the rules are only partly there')) == (1, 1)
    host.attach('one_hop', *routers)
    assert host.metadata_wsgi('attached')[0] == 0


def test_attach_without_worker_prints_a_warning(host, routers):
    host.proxy.kill(signal.SIGTERM)
    host.proxy.wait()
    code, _, err = host.metadata_wsgi('attach', '--no-wait', '--mode', 'shared', *routers)
    assert (code, err.count('start quantum-ns-metadata-proxy --shared')) == (0, 1)
