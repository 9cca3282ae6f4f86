# SPDX-License-Identifier: Apache-2.0
"""Neutron's own programs beside ours: its metadata driver starts ``metadata-wsgi-haproxy``, its clean-up kills."""

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.netns import neutron_node
from tests.netns.neutron_node import SHIM, is_alive, until
from tests.openstack import deployment, install

pytestmark = [
    pytest.mark.openstack,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces'),
]

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def neutron_python():
    """A Python that can import Neutron."""
    return install.install(deployment.directory()) / 'bin' / 'python'


@pytest.fixture
def node(tmp_path):
    with neutron_node.running(tmp_path) as made:
        yield made


@pytest.fixture
def driver(node, tmp_path, neutron_python):
    """Sends a command to Neutron's driver, which finds our program as haproxy on PATH; returns its reply."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    (programs / 'haproxy').symlink_to(SHIM)
    environment = {**os.environ, 'PATH': f'{programs}:{os.environ["PATH"]}:/usr/sbin:/sbin'}
    with (
        open(tmp_path / 'driver.log', 'w') as log,
        subprocess.Popen(
            [neutron_python, HERE / 'neutron_driver.py', node.state_path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        ) as process,
    ):  # fmt: skip

        def send(*words):
            if words:
                print(*words, file=process.stdin, flush=True)
            reply = process.stdout.readline()
            assert reply, (tmp_path / 'driver.log').read_text()
            return json.loads(reply)

        assert send() == {'ready': True}
        yield send
        process.kill()


def refuses(node, id_):
    """Whether nothing listens any more; the workers close the socket soon after the keeper."""
    try:
        node.get(id_)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # accepted by the kernel before the last copy was closed
    return False


def test_the_l3_agents_driver_spawns_monitors_respawns_and_destroys(node, driver):
    id_ = node.add_router()
    spawned = driver('spawn', 'router', id_, f'qrouter-{id_}', 9697, '0.0.0.0')
    assert (spawned['registered'], spawned['active']) == (True, True)
    assert 'metadata-wsgi-holder' in spawned['cmdline']
    assert node.get(id_) == id_
    os.kill(spawned['pid'], 9)
    until(lambda: not is_alive(spawned['pid']))
    assert driver('active', id_)['active'] is False
    respawned = driver('respawn', id_)
    assert respawned['active']
    assert respawned['pid'] != spawned['pid']
    assert node.get(id_) == id_
    assert driver('destroy', 'router', id_, f'qrouter-{id_}') == {'destroyed': True}
    until(lambda: not is_alive(respawned['pid']))
    assert not list((node.state_path / 'ns-metadata-proxy').iterdir())
    until(lambda: refuses(node, id_))


def test_the_l3_agents_driver_replaces_a_proxy_whose_configuration_changed(node, driver):
    id_ = node.add_router()
    first = driver('spawn', 'router', id_, f'qrouter-{id_}', 9697, '0.0.0.0')
    again = driver('spawn', 'router', id_, f'qrouter-{id_}', 9697, '0.0.0.0')
    assert again['pid'] == first['pid']
    changed = driver('spawn', 'router', id_, f'qrouter-{id_}', 9697, '::')
    assert changed['active']
    assert changed['pid'] != first['pid']
    assert node.get(id_) == id_


def test_the_dhcp_agents_driver_serves_a_network_over_both_families(node, driver):
    id_ = node.add_router()
    namespace = f'qrouter-{id_}'
    for address in ('169.254.169.254/32', 'fe80::a9fe:a9fe/128'):
        neutron_node.run('ip', '-n', namespace, 'addr', 'add', address, 'dev', 'qr-1')
    # The DHCP agent's own wait for the duplicate address detection is in the call.
    spawned = driver('spawn', 'network', id_, namespace, 80, '169.254.169.254', 'fe80::a9fe:a9fe', 'qr-1')
    assert (spawned['registered'], spawned['active']) == (True, True), spawned
    listening = neutron_node.run('ip', 'netns', 'exec', namespace, 'ss', '-Htln')
    assert '169.254.169.254:80' in listening
    assert '[fe80::a9fe:a9fe]%qr-1:80' in listening
    assert driver('destroy', 'network', id_, namespace) == {'destroyed': True}


def test_the_ovn_agents_driver_spawns_respawns_and_destroys(node, driver):
    id_ = node.add_router('ovnmeta')
    namespace = f'ovnmeta-{id_}'
    neutron_node.run('ip', '-n', namespace, 'addr', 'add', '169.254.169.254/32', 'dev', 'qr-1')
    # In OVN the address is on the interface, port 80; no rule redirects.
    neutron_node.run('ip', 'netns', 'exec', namespace, 'iptables', '-t', 'nat', '-F', 'PREROUTING')
    spawned = driver('spawn', 'ovn', id_, namespace, 80, '169.254.169.254')
    assert (spawned['registered'], spawned['active']) == (True, True)
    assert 'metadata-wsgi-holder' in spawned['cmdline']
    assert node.get(id_) == id_
    os.kill(spawned['pid'], 9)
    until(lambda: not is_alive(spawned['pid']))
    assert driver('respawn', id_)['active']
    assert node.get(id_) == id_
    assert driver('destroy', 'ovn', id_, namespace) == {'destroyed': True}
    assert not list((node.state_path / 'ovn-metadata-proxy').iterdir())
    until(lambda: refuses(node, id_))


def test_netns_cleanup_of_one_namespace_refuses_no_client_behind_others(node, tmp_path, neutron_python):
    """It ends whatever listens in the namespace: the keeper by SIGTERM, after ten seconds the workers by SIGKILL.

    A service manager starts them again. Requests in progress in a worker that is killed have no response; no client is
    refused, and none waits in vain.
    """
    for _ in range(100):  # it overlooks process numbers of one digit, which a namespace of processes has
        neutron_node.run('true')
    node.supervise()
    cleaned, other = node.add_router(), node.add_router('qdhcp')
    for id_ in (cleaned, other):
        node.start_proxy(id_, SHIM)
        assert node.get(id_) == id_
    configuration = tmp_path / 'neutron.conf'
    configuration.write_text(
        f'[DEFAULT]\nstate_path = {node.state_path}\ninterface_driver = openvswitch\n[AGENT]\nroot_helper =\n'
        f'[oslo_concurrency]\nlock_path = {tmp_path}\n'
    )
    bodies, interrupted, failures, stop = [], [], [], threading.Event()

    def client():
        while not stop.is_set():
            try:
                bodies.append(node.get(other, timeout_s=60))
            except ConnectionResetError:
                interrupted.append(other)
            except (OSError, AssertionError) as error:
                is_interrupted = "b''" in str(error) or 'HTTP/1.1 503' in str(error)
                interrupted.append(other) if is_interrupted else failures.append(repr(error))

    clients = [threading.Thread(target=client) for _ in range(20)]
    for thread in clients:
        thread.start()
    before = node.pids()
    argv = [neutron_python, HERE / 'neutron_netns_cleanup.py', '--config-file', configuration, '--force']
    done = subprocess.run([*argv, '--agent-type', 'l3'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    until(lambda: not Path(f'/run/netns/qrouter-{cleaned}').exists())
    until(lambda: node.serves(other))
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    assert set(bodies) == {other}
    # The clean-up may end workers twice.
    assert len(interrupted) <= 3 * len(clients), 'more than the requests in progress'
    assert before != node.pids(), 'the clean-up ended neither keeper nor proxy: nothing was shown'
