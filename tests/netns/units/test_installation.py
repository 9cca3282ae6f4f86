# SPDX-License-Identifier: Apache-2.0
"""What a unit finds and makes on its host: directories, owners, secrets, drop-ins; and which privileges it drops."""

import os
import re

import pytest

from metadata_wsgi.netns import namespaces
from tests.e2e.conftest import eventually
from tests.netns.keeper_host import get_instance_id, serves
from tests.netns.systemd_machine import CHECKOUT, NEUTRON, UNITS, USER, BootError
from tests.netns.units.running_units import (
    AGENT,
    ALL,
    EXPECTED_OWNERS,
    KEEPER,
    PROXY,
    SECRET_FILE,
    owners,
    pid,
    start_machine,
    workers,
)

pytestmark = pytest.mark.netns

CAPABILITIES = {'net_bind_service': 10, 'net_admin': 12, 'sys_admin': 21, 'chown': 0, 'dac_override': 1}


def test_boot_is_refused_if_a_host_mount_is_writable(machine, directory):
    """The boot clears temporary files, and must not clear those of the host."""
    precious = directory / 'precious'
    precious.mkdir()
    machine.boot = machine.boot.replace('pivot_root', f'mkdir precious; mount --bind {precious} precious; pivot_root')
    with pytest.raises(BootError, match='/precious could be written to'):
        machine.start()


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
        lambda: serves(topology.guest, 'instance-a'),
        lambda: f'the guest gets responses: {host.text()}',
    )


def drop_ins_of_migration_level_1():
    """The text of each drop-in by its unit, from doc/migration/index.md."""
    text = (CHECKOUT / 'doc' / 'migration' / 'index.md').read_text()
    found = re.findall(r'`systemctl edit (\S+)` and write:\n\n((?:(?: {7}.*)?\n)+)', text)
    return {unit: '\n'.join(line.strip() for line in block.splitlines()) + '\n' for unit, block in found}
