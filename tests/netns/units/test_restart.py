# SPDX-License-Identifier: Apache-2.0
"""A reload, restart, kill or upgrade of the units refuses no connection."""

import pytest

from metadata_wsgi.netns import namespaces
from tests.e2e.conftest import eventually
from tests.netns.keeper_host import RequestLoad, get_instance_id, serves
from tests.netns.units.running_units import (
    AGENT,
    ALL,
    EXPECTED_OWNERS,
    KEEPER,
    PROXY,
    children,
    owners,
    pid,
    refused_connections,
    sockets_in_fdstore,
    wait_until_attached_is_healthy,
    workers,
)

pytestmark = pytest.mark.netns


@pytest.mark.parametrize('unit', ALL)
@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_reload_restart_and_kill_of_each_unit_refuse_no_connection(host, attach, load, mode, unit):
    attach(mode)
    requests = load()
    before = pid(host, unit)
    if unit != KEEPER:
        host.systemctl('reload', unit)
        requests.more()
        assert pid(host, unit) == before
        assert requests.failures == [], host.text()
    # On a loaded machine a restart takes longer than the deadline of a request, which SIGUSR1 does not.
    host.systemctl('restart', unit)
    requests.more()
    assert refused_connections(requests) == [], host.text()
    for _ in range(2):
        previous = pid(host, unit)
        assert previous != before
        host.systemctl('kill', '--signal', 'KILL', unit)
        eventually(lambda previous=previous: pid(host, unit) not in (0, previous), 'systemd started it again')
        target_count = requests.answered + 30
        eventually(
            lambda target_count=target_count: requests.answered > target_count,
            lambda: f'requests succeed: {host.text()}',
        )
    assert refused_connections(requests) == []
    assert owners(host) == EXPECTED_OWNERS
    wait_until_attached_is_healthy(host)


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_kill_of_keeper_and_workers_together_refuses_no_connection(host, attach, load, mode):
    """Neither has the sockets then; systemd's fd store has them."""
    attach(mode)
    assert sockets_in_fdstore(host) == 1
    requests = load()
    for _ in range(2):
        previous = [pid(host, unit) for unit in ALL]
        host.systemctl('kill', '--signal', 'KILL', *ALL)
        eventually(
            lambda previous=previous: not {0, *previous} & {pid(host, unit) for unit in ALL}, 'all started again'
        )
        target_count = requests.answered + 30
        eventually(
            lambda target_count=target_count: requests.answered > target_count,
            lambda: f'requests succeed: {host.text()}',
        )
    assert refused_connections(requests) == []
    assert sockets_in_fdstore(host) == 1
    wait_until_attached_is_healthy(host)


def test_connection_while_no_worker_runs_waits_in_the_backlog(host, topology, attach):
    attach('shared')
    host.systemctl('stop', PROXY)
    # Only systemd has the listening socket, with its backlog.
    host.systemctl('kill', '--signal', 'KILL', KEEPER)
    requests = RequestLoad([(topology.guest, 'instance-a')])
    try:
        eventually(lambda: host.show_property(KEEPER, 'ActiveState') == 'active', 'the keeper is back')
        assert (requests.answered, requests.failures) == (0, [])
        host.systemctl('start', PROXY)
        requests.more()
    finally:
        requests.stop()
    assert requests.failures == []


def test_mode_change_and_detach_update_the_fdstore(host, topology, attach):
    attach('shared')
    attach('one_hop')
    assert sockets_in_fdstore(host) == 1
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    eventually(lambda: serves(topology.guest, 'instance-a'), 'the guest gets responses')
    assert 'one_hop' in host.metadata_wsgi('attached').stdout
    host.metadata_wsgi('detach', '--router-id', 'router-a', '--namespace', topology.router)
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    eventually(lambda: workers(host) == {'shared', 'one_hop'}, 'workers of both modes are connected')
    assert (sockets_in_fdstore(host), 'router-a' in host.metadata_wsgi('attached').stdout) == (0, False)


def test_stop_and_start_of_all_units_needs_only_a_new_attach(host, topology, attach):
    attach('shared')
    host.systemctl('stop', *ALL)
    host.systemctl('start', *ALL)
    eventually(lambda: workers(host) == {'shared', 'one_hop'}, 'workers of both modes are connected')
    assert owners(host) == EXPECTED_OWNERS
    assert host.metadata_wsgi('attached', check=False).returncode == 1
    attach('shared')
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-a'
    wait_until_attached_is_healthy(host)


def test_restart_of_the_agent_refuses_no_connection_to_its_socket(host):
    """As haproxy connects, which does not wait for the agent: systemd keeps the socket."""
    client = (
        'import socket, sys, threading\n'
        'stop = threading.Event()\n'
        'errors = []\n'
        'def connect():\n'
        '    while not stop.is_set():\n'
        '        with socket.socket(socket.AF_UNIX) as client:\n'
        '            try:\n'
        '                client.connect("/var/lib/quantum/metadata_proxy")\n'
        '                client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")\n'
        '                assert client.recv(100).startswith(b"HTTP/1.")\n'
        '            except Exception as error:\n'
        '                errors.append(repr(error))\n'
        'thread = threading.Thread(target=connect)\n'
        'thread.start()\n'
        'import subprocess\n'
        'subprocess.run(sys.argv[1:], check=True)\n'
        'stop.set()\n'
        'thread.join()\n'
        'print(errors)\n'
    )
    for words in (('restart', AGENT), ('restart', AGENT)):
        assert host.run(host.interpreter, '-c', client, 'systemctl', *words).stdout == '[]\n', host.text()
    assert host.show_property(AGENT, 'NFileDescriptorStore') == '1'
    # With another mode in the options the file of the kept socket gets this mode.
    host.run('sed', '-i', '1a metadata_proxy_socket_mode = all', '/etc/metadata_wsgi/metadata_agent.ini', check=True)
    host.systemctl('restart', AGENT)
    assert host.run('stat', '-c', '%a', '/var/lib/quantum/metadata_proxy').stdout == '666\n'
    eventually(lambda: host.show_property(AGENT, 'NFileDescriptorStore') == '1', host.text)


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_sigusr1_replaces_the_program_without_a_failed_request(host, attach, load, mode):
    """As an upgrade does. The process id stays, the workers are new, and the former ones end."""
    attach(mode)
    requests = load()
    for unit in (PROXY, AGENT):
        master, before = pid(host, unit), children(host, unit)
        host.systemctl('kill', '--kill-whom=main', '--signal', 'USR1', unit)
        eventually(
            lambda unit=unit, before=before: children(host, unit) and not before & children(host, unit),
            lambda: f'the former workers ended: {host.text()}',
            within_s=60,
        )
        assert (pid(host, unit), host.show_property(unit, 'NRestarts')) == (master, '0')
        requests.more()
    assert requests.failures == [], host.text()
    host.systemctl('restart', AGENT, PROXY)
    requests.more()
    assert refused_connections(requests) == []
