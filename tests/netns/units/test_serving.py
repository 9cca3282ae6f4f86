# SPDX-License-Identifier: Apache-2.0
"""Guests get responses from the shipped units, in each mode."""

import subprocess

import pytest

from metadata_wsgi.netns import namespaces
from tests.e2e.conftest import eventually
from tests.netns.keeper_host import TARGET, get_instance_id, serves
from tests.netns.router_topology import METADATA, ip
from tests.netns.units.running_units import (
    ALL,
    WATCH,
    sockets_in_fdstore,
    start_machine,
    wait_until_attached_is_healthy,
)

pytestmark = pytest.mark.netns


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_guest_gets_responses_from_the_shipped_units(host, topology, attach, mode):
    attach(mode)
    curl = subprocess.run(
        ['ip', 'netns', 'exec', topology.guest, 'curl', '-s', '-m', '20', f'http://{METADATA}{TARGET}'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert '"instance-a"' in curl.stdout, host.text()
    # When a namespace is deleted the keeper checks all sockets, and would close one that it cannot check.
    attach(mode, 'router-b', topology.outside)
    assert sockets_in_fdstore(host) == 2
    ip('netns', 'delete', topology.outside)
    eventually(lambda: sockets_in_fdstore(host) < 2, 'the keeper closed the socket of the deleted namespace')
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-a', host.text()
    wait_until_attached_is_healthy(host)
    # Root reads the failures of the agent, whose master runs as the user of the unit.
    assert host.metadata_wsgi('status', '--failures', check=False).returncode == 0, host.text()
    host.metadata_wsgi('detach', '--router-id', 'router-a', '--namespace', topology.router)
    assert (sockets_in_fdstore(host), host.metadata_wsgi('attached').stdout.count('router-a')) == (0, 0)


def test_isolated_network_has_both_addresses(host, topology):
    """On port 80 and on a tentative IPv6 address, for which the keeper needs capabilities."""
    words = ('--network-id', 'network-c', '--namespace', topology.router, '--interface', 'qr-in')
    host.metadata_wsgi('attach', '--no-wait', '--mode', 'shared', *words)
    assert sockets_in_fdstore(host) == 2, host.text()
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    eventually(lambda: serves(topology.guest, 'instance-c'), host.text)
    assert sockets_in_fdstore(host) == 2
    host.metadata_wsgi('detach', *words[:-2])
    assert sockets_in_fdstore(host) == 0


def test_mode_process_reaches_the_agent_of_the_unit(host, topology, attach):
    attach('process')
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-a', host.text()
    assert sockets_in_fdstore(host) == 0


@pytest.mark.parametrize('mode', ['shared', 'process'])
def test_watch_unit_attaches_routers_and_its_restart_refuses_no_connection(machine, topology, load, mode):
    router = topology.router.removeprefix('qrouter-')
    inventory = machine.skeleton / 'etc' / 'metadata_wsgi' / 'inventory.yaml'
    inventory.write_text(inventory.read_text().replace('router-a', router))
    host = start_machine(machine)
    command = host.run('grep', '-h', '^ExecStart=/', f'/etc/systemd/system/{WATCH}.service.d/here.conf').stdout.strip()
    drop_in = f'/etc/systemd/system/{WATCH}.service.d/mode.conf'
    host.run('sh', '-c', f'printf "[Service]\\nExecStart=\\n{command} -- --mode {mode}\\n" > {drop_in}', check=True)
    host.systemctl('daemon-reload')
    host.systemctl('start', WATCH)
    eventually(
        lambda: host.show_property(WATCH, 'StatusText').startswith('1 routers and networks are attached'),
        lambda: host.run('cat', f'/var/log/{WATCH}.log').stdout,
    )
    requests = load()
    host.systemctl('restart', WATCH)
    host.systemctl('kill', '--kill-whom', 'main', '--signal', 'KILL', WATCH)
    eventually(
        lambda: host.show_property(WATCH, 'StatusText').startswith('1 routers and networks are attached'),
        lambda: host.run('cat', f'/var/log/{WATCH}.log').stdout,
    )
    requests.more()
    requests.stop()
    assert requests.failures == [], host.text()
    host.systemctl('stop', WATCH)
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-a', host.text()
    host.metadata_wsgi('detach', '--router-id', router)
