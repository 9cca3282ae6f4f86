# SPDX-License-Identifier: Apache-2.0
"""The shipped units of etc/systemd under a running systemd: do guests get responses, also after restart and kill?"""

import os
import re
import subprocess
import uuid

import pytest

from metadata_wsgi.netns import namespaces
from tests.cloud import SECRET, Cloud
from tests.e2e.conftest import eventually

from .keeper_host import TARGET, RequestLoad, get_instance_id
from .router_topology import METADATA, ip
from .running_units import (
    AGENT,
    ALL,
    EXPECTED_OWNERS,
    KEEPER,
    PROXY,
    WATCH,
    children,
    owners,
    pid,
    refused_connections,
    shorten_watchdog,
    sockets_in_fdstore,
    start_machine,
    wait_until_attached_is_healthy,
    workers,
)
from .systemd_machine import CHECKOUT, NEUTRON, UNITS, USER, BootError, SystemdMachine, missing_requirements

pytestmark = pytest.mark.netns

SECRET_FILE = 'metadata_proxy_shared_secret'
CAPABILITIES = {'net_bind_service': 10, 'net_admin': 12, 'sys_admin': 21, 'chown': 0, 'dac_override': 1}


@pytest.fixture
def network():
    """The network namespace of the machine; the fake Nova listens on its loopback."""
    name = f'host-{uuid.uuid4()}'
    ip('netns', 'add', name)
    try:
        ip('-n', name, 'link', 'set', 'lo', 'up')
        yield name
    finally:
        ip('netns', 'delete', name)


@pytest.fixture
def machine(directory, network, topology):
    """The machine for the units, not booted yet."""
    why = missing_requirements()
    if why:
        pytest.skip(why)
    with namespaces.run_in(network, lambda: Cloud(directory)) as cloud:
        cloud.configure(state_path=None, metadata_one_hop=True)
        conf = cloud.conf_file.read_text().replace(str(directory), '/etc/metadata_wsgi')
        inventory = (directory / 'inventory.yaml').read_text()
        made = SystemdMachine(directory, network, conf, {'inventory.yaml': inventory, SECRET_FILE: SECRET})
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def host(machine):
    return start_machine(machine)


@pytest.fixture
def attach(host, topology):
    def attach(mode, router='router-a', namespace=topology.router):
        words = ('--no-wait', '--mode', mode, '--router-id', router, '--namespace', namespace)
        done = host.metadata_wsgi('attach', *words)
        assert done.stderr == '', host.text()

    return attach


@pytest.fixture
def load(topology):
    """Starts a load of two parallel requests of the guest; stopped at the end of the test."""
    loads = []

    def start():
        loads.append(RequestLoad([(topology.guest, 'instance-a')] * 2))
        loads[-1].more()
        return loads[-1]

    yield start
    for one in loads:
        one.stop()


def test_boot_is_refused_if_a_host_mount_is_writable(machine, directory):
    """The boot clears temporary files, and must not clear those of the host."""
    precious = directory / 'precious'
    precious.mkdir()
    machine.boot = machine.boot.replace('pivot_root', f'mkdir precious; mount --bind {precious} precious; pivot_root')
    with pytest.raises(BootError, match='/precious could be written to'):
        machine.start()


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
    host.metadata_wsgi('detach', '--router-id', 'router-a', '--namespace', topology.router)
    assert (sockets_in_fdstore(host), host.metadata_wsgi('attached').stdout.count('router-a')) == (0, 0)


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


def test_state_directory_of_quantums_agents_keeps_its_owner(machine):
    """As documented: the group has access, and no unit changes the owner."""
    directory = machine.skeleton / 'var' / 'lib' / 'quantum'
    directory.mkdir()
    os.chown(directory, USER + 1, USER)
    directory.chmod(0o1775)
    host = start_machine(machine)
    for unit in ALL:
        host.systemctl('restart', unit)
    eventually(
        lambda: workers(host) == {'shared', 'one_hop'}, lambda: f'workers of both modes are connected: {host.text()}'
    )
    assert owners(host) == [EXPECTED_OWNERS[0].replace('root', 'UNKNOWN', 1), *EXPECTED_OWNERS[1:]]


def test_isolated_network_has_both_addresses(host, topology):
    """On port 80 and on a tentative IPv6 address, for which the keeper needs capabilities."""
    words = ('--network-id', 'network-c', '--namespace', topology.router, '--interface', 'qr-in')
    host.metadata_wsgi('attach', '--no-wait', '--mode', 'shared', *words)
    assert sockets_in_fdstore(host) == 2, host.text()
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-c', host.text()
    assert sockets_in_fdstore(host) == 2
    host.metadata_wsgi('detach', *words[:-2])
    assert sockets_in_fdstore(host) == 0


def test_mode_process_reaches_the_agent_of_the_unit(host, topology, attach):
    attach('process')
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-a', host.text()
    assert sockets_in_fdstore(host) == 0


def test_secret_as_systemd_credential(host, topology, attach):
    """The unit has the line LoadCredential=, commented out."""
    commented = (UNITS / f'{AGENT}.service').read_text().splitlines()
    (line,) = [line for line in commented if line.startswith(f'#LoadCredential={SECRET_FILE}:')]
    drop_in = f'/etc/systemd/system/{AGENT}.service.d/credential.conf'
    host.run('sh', '-c', f'printf "[Service]\\n{line[1:]}\\n" > {drop_in}', check=True)
    host.run('sed', '-i', f'/^{SECRET_FILE} /d', '/etc/metadata_wsgi/metadata_agent.ini', check=True)
    host.run('chmod', '600', f'/etc/metadata_wsgi/{SECRET_FILE}', check=True)
    host.systemctl('daemon-reload')
    host.systemctl('restart', AGENT)
    eventually(lambda: 'one_hop' in workers(host), lambda: f'the one_hop worker is connected: {host.text()}')
    attach('one_hop')
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-a', host.text()


def test_units_drop_capabilities_users_and_syscalls(host):
    for unit in ALL:
        lines = host.run('cat', f'/proc/{pid(host, unit)}/status').stdout.splitlines()
        status = dict(line.split(':\t', 1) for line in lines if ':\t' in line)
        keeps = sum(1 << number for number in CAPABILITIES.values()) if unit == KEEPER else 0
        uid = 0 if unit == KEEPER else USER
        assert (unit, status['CapBnd'], status['CapEff']) == (unit, f'{keeps:016x}', f'{keeps:016x}')
        assert (status['Uid'].split(), status['NoNewPrivs'], status['Seccomp']) == ([str(uid)] * 4, '1', '2')


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
    eventually(lambda: namespaces.run_in(topology.guest, get_instance_id) == 'instance-a', 'the guest gets responses')
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


def test_drop_ins_of_migration_level_1_serve_as_the_user_neutron(machine, topology):
    """As documented: keeper and shared proxy in Neutron's state path, beside an agent with Neutron's defaults."""
    state_path = machine.skeleton / 'var' / 'lib' / 'neutron'
    state_path.mkdir()
    os.chown(state_path, NEUTRON, NEUTRON)
    documented = drop_ins_of_migration_level_1()
    assert set(documented) == {KEEPER, PROXY}
    agent = '/opt/bin/neutron-metadata-agent-wsgi --config-file /etc/metadata_wsgi/metadata_agent.ini'
    documented[AGENT] = (
        f'[Service]\nUser=neutron\nGroup=neutron\nReadWritePaths=/var/lib/neutron\nExecStart=\nExecStart={agent}\n'
    )
    for unit, text in documented.items():
        drop_in = machine.skeleton / 'etc' / 'systemd' / 'system' / f'{unit}.service.d' / 'level-1.conf'
        drop_in.write_text(text.replace('/opt/metadata-wsgi/bin/', '/opt/bin/'))
    conf = machine.skeleton / 'etc' / 'metadata_wsgi' / 'metadata_agent.ini'
    os.chown(conf, 0, NEUTRON)
    # The test's cloud names the user nobody.
    conf.write_text(re.sub('(?m)^(metadata_peer_users|metadata_one_hop) = .*\n', '', conf.read_text()))
    host = machine.start()
    host.systemctl('start', *ALL)
    eventually(
        lambda: workers(host, '/var/lib/neutron') == {'shared'}, lambda: f'the shared proxy is connected: {host.text()}'
    )
    words = ('--state-path', '/var/lib/neutron', '--router-id', 'router-a', '--namespace', topology.router)
    host.metadata_wsgi('attach', '--no-wait', '--mode', 'shared', *words)
    assert namespaces.run_in(topology.guest, get_instance_id) == 'instance-a', host.text()
    for unit, uid in ((KEEPER, 0), (PROXY, NEUTRON), (AGENT, NEUTRON)):
        uids = re.search(r'Uid:\t(.*)', host.run('cat', f'/proc/{pid(host, unit)}/status').stdout)[1]
        assert uids.split() == [str(uid)] * 4
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    eventually(
        lambda: namespaces.run_in(topology.guest, get_instance_id) == 'instance-a',
        lambda: f'the guest gets responses: {host.text()}',
    )


def drop_ins_of_migration_level_1():
    """The text of each drop-in by its unit, from doc/migration/index.md."""
    text = (CHECKOUT / 'doc' / 'migration' / 'index.md').read_text()
    found = re.findall(r'`systemctl edit (\S+)` and write:\n\n((?: {7}.*\n)+)', text)
    return {unit: '\n'.join(line.strip() for line in block.splitlines()) + '\n' for unit, block in found}


@pytest.mark.parametrize('unit', ALL)
def test_watchdog_restarts_a_service_that_makes_no_progress(host, topology, attach, unit):
    """A stopped process stands for one that hangs; the socket of the router stays open meanwhile."""
    attach('shared')
    shorten_watchdog(host, unit)
    before = pid(host, unit)
    host.systemctl('kill', '--kill-whom=main', '--signal', 'STOP', unit)
    eventually(lambda: pid(host, unit) not in (0, before), lambda: f'it was restarted: {host.text()}', within_s=60)
    assert 'Watchdog timeout' in host.run('cat', '/dev/kmsg').stdout
    eventually(
        lambda: namespaces.run_in(topology.guest, get_instance_id) == 'instance-a',
        lambda: f'the guest gets responses: {host.text()}',
    )


@pytest.mark.parametrize('unit', [AGENT, PROXY])
def test_watchdog_is_not_fed_while_no_worker_makes_progress(host, topology, attach, unit):
    """The master runs on, and would end such workers only after ``limits.WORKER_TIMEOUT_S``."""
    attach('shared')
    shorten_watchdog(host, unit)
    before = pid(host, unit)
    host.run('kill', '-STOP', *children(host, unit), check=True)
    eventually(lambda: pid(host, unit) not in (0, before), lambda: f'it was restarted: {host.text()}', within_s=60)
    assert 'Watchdog timeout' in host.run('cat', '/dev/kmsg').stdout
    eventually(
        lambda: namespaces.run_in(topology.guest, get_instance_id) == 'instance-a',
        lambda: f'the guest gets responses: {host.text()}',
    )


def test_status_line_of_each_unit(host, attach):
    attach('shared')
    expected = {
        KEEPER: r'1 sockets in namespaces; workers: \d+ one_hop, 1 shared',
        AGENT: r'(\d+) of \1 workers serve, version \S+',
        PROXY: r'1 of 1 workers serve, version \S+',
    }
    for unit, pattern in expected.items():
        eventually(
            lambda unit=unit, pattern=pattern: re.fullmatch(pattern, host.show_property(unit, 'StatusText')),
            lambda unit=unit: f'{unit}: {host.show_property(unit, "StatusText")!r}: {host.text()}',
        )


def test_status_line_names_the_error_of_a_reload_that_failed(host):
    conf = '/etc/metadata_wsgi/metadata_agent.ini'
    host.run('sed', '-i', '1a metadata_connections = none', conf, check=True)
    host.systemctl('reload', AGENT)
    eventually(
        lambda: '; not reloaded: ' in host.show_property(AGENT, 'StatusText'),
        lambda: host.show_property(AGENT, 'StatusText') + host.text(),
    )
    assert 'metadata_connections' in host.show_property(AGENT, 'StatusText')
    host.run('sed', '-i', '/metadata_connections = none/d', conf, check=True)
    host.systemctl('reload', AGENT)
    eventually(
        lambda: re.fullmatch(r'(\d+) of \1 workers serve, version \S+', host.show_property(AGENT, 'StatusText')),
        lambda: host.show_property(AGENT, 'StatusText') + host.text(),
    )


def test_metrics_directory_exists_and_outlives_a_restart(host):
    for _ in range(2):
        stat = host.run('stat', '-c', '%U %a', '/run/metadata_wsgi/metrics', check=True).stdout
        assert stat == 'metadata-wsgi 755\n'
        host.run('touch', '/run/metadata_wsgi/metrics/counts', check=True)
        host.systemctl('restart', AGENT)
    host.run('test', '-e', '/run/metadata_wsgi/metrics/counts', check=True)
    host.systemctl('stop', AGENT)
    # The namespace proxy counts there too.
    host.run('test', '-e', '/run/metadata_wsgi/metrics/counts', check=True)


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
    # With another mode of the socket the kept one is not used.
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
