# SPDX-License-Identifier: Apache-2.0
"""The units of etc/systemd as they are shipped, under a systemd that runs: do they serve, and what survives what?"""

import os
import re
import subprocess
import uuid

import pytest

from metadata_wsgi.netns import namespaces
from tests.cloud import SECRET, Cloud
from tests.e2e.conftest import eventually

from .booted import CHECKOUT, UNITS, USER, Booted, DidNotBoot, what_is_missing
from .manyfold import TARGET, Load, ask
from .worlds import METADATA, ip

pytestmark = pytest.mark.netns

KEEPER, AGENT, PROXY = 'metadata-wsgi-keeper', 'quantum-metadata-agent', 'quantum-ns-metadata-proxy'
ALL = (KEEPER, AGENT, PROXY)
SECRET_FILE = 'metadata_proxy_shared_secret'
CAPABILITIES = {'net_bind_service': 10, 'net_admin': 12, 'sys_admin': 21, 'chown': 0, 'dac_override': 1}


@pytest.fixture
def network():
    """The network of the host on which systemd runs: the fake Nova is on its loopback."""
    name = f'host-{uuid.uuid4()}'
    ip('netns', 'add', name)
    try:
        ip('-n', name, 'link', 'set', 'lo', 'up')
        yield name
    finally:
        ip('netns', 'delete', name)


@pytest.fixture
def machine(directory, network, world):
    """What the units run on, not yet booted."""
    why = what_is_missing()
    if why:
        pytest.skip(why)
    with namespaces.run_in(network, lambda: Cloud(directory)) as cloud:
        cloud.configure(state_path=None, metadata_one_hop=True)
        conf = cloud.conf_file.read_text().replace(str(directory), '/etc/metadata_wsgi')
        inventory = (directory / 'inventory.yaml').read_text()
        made = Booted(directory, network, conf, {'inventory.yaml': inventory, SECRET_FILE: SECRET})
        try:
            yield made
        finally:
            made.stop()


def started(machine):
    """Booted, and every unit started."""
    try:
        booted = machine.start()
    except DidNotBoot as error:
        pytest.skip(f'no systemd could be booted here: {error}')
    booted.systemctl('start', *ALL)
    eventually(lambda: workers(booted) == {'shared', 'one_hop'}, lambda: f'both follow: {booted.text()}')
    return booted


@pytest.fixture
def host(machine):
    return started(machine)


@pytest.fixture
def attach(host, world):
    def attach(mode, router='router-a', namespace=world.router):
        words = ('--no-wait', '--mode', mode, '--router-id', router, '--namespace', namespace)
        done = host.metadata_wsgi('attach', *words)
        assert done.stderr == '', host.text()

    return attach


@pytest.fixture
def load(world):
    """The guest asks, twice at a time; ended with the test."""
    started = []

    def start():
        started.append(Load([(world.guest, 'instance-a')] * 2))
        started[-1].more()
        return started[-1]

    yield start
    for one in started:
        one.stop()


def workers(host):
    """The modes that somebody serves."""
    script = (
        'import sys; sys.path[:0] = ["/opt/checkout", "/opt/packages"]\n'
        'from metadata_wsgi.keeper.attachments_client import AttachmentsClient\n'
        'print(*AttachmentsClient("/var/lib/quantum").workers())'
    )
    return set(host.run(host.interpreter, '-c', script).stdout.split())


def stored(host):
    return int(host.shown(KEEPER, 'NFileDescriptorStore'))


def pid(host, unit):
    return int(host.shown(unit, 'MainPID'))


def all_is_well(host):
    """Wait until nothing is wrong with what is attached: a worker finds a new keeper when it looks the next time."""
    eventually(
        lambda: host.metadata_wsgi('attached', check=False).returncode == 0,
        lambda: host.metadata_wsgi('attached', check=False).stdout + host.text(),
    )


def refused(asking):
    return [failure for failure in asking.failures if isinstance(failure, ConnectionRefusedError)]


def owners(host):
    """Whose each of the sockets is, and who may open it."""
    return host.run('stat', '-c', '%n %U:%G %a', *(f'/var/lib/quantum{name}' for name in SOCKETS)).stdout.splitlines()


SOCKETS = ('', '/keeper', '/listeners', '/metadata_proxy')
AS_INTENDED = [
    '/var/lib/quantum root:metadata-wsgi 1775',
    '/var/lib/quantum/keeper root:root 600',
    '/var/lib/quantum/listeners root:metadata-wsgi 660',
    '/var/lib/quantum/metadata_proxy metadata-wsgi:metadata-wsgi 660',
]


def test_nothing_of_this_machine_can_be_written_to(machine, directory):
    """Or it is not booted: what clears temporary files at a boot would clear this machine's."""
    precious = directory / 'precious'
    precious.mkdir()
    machine.boot = machine.boot.replace('pivot_root', f'mkdir precious; mount --bind {precious} precious; pivot_root')
    with pytest.raises(DidNotBoot, match='/precious could be written to'):
        machine.start()


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_a_guest_is_served_by_what_is_shipped(host, world, attach, mode):
    attach(mode)
    curl = subprocess.run(
        ['ip', 'netns', 'exec', world.guest, 'curl', '-s', '-m', '20', f'http://{METADATA}{TARGET}'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert '"instance-a"' in curl.stdout, host.text()
    # When a namespace goes the keeper looks after all of its sockets: one that it could not judge it would drop.
    attach(mode, 'router-b', world.outside)
    assert stored(host) == 2
    ip('netns', 'delete', world.outside)
    eventually(lambda: stored(host) < 2, 'the keeper let go of what was deleted')
    assert namespaces.run_in(world.guest, ask) == 'instance-a', host.text()
    all_is_well(host)
    host.metadata_wsgi('detach', '--router-id', 'router-a', '--namespace', world.router)
    assert (stored(host), host.metadata_wsgi('attached').stdout.count('router-a')) == (0, 0)


def test_a_directory_that_quantums_agents_made_stays_theirs(machine):
    """As the documentation says: let the group in, and no unit takes it from them."""
    theirs = machine.skeleton / 'var' / 'lib' / 'quantum'
    theirs.mkdir()
    os.chown(theirs, USER + 1, USER)
    theirs.chmod(0o1775)
    host = started(machine)
    for unit in ALL:
        host.systemctl('restart', unit)
    eventually(lambda: workers(host) == {'shared', 'one_hop'}, lambda: f'both follow: {host.text()}')
    assert owners(host) == [AS_INTENDED[0].replace('root', 'UNKNOWN', 1), *AS_INTENDED[1:]]


def test_an_isolated_network_has_its_two_addresses(host, world):
    """On port 80, and at an address that the kernel has yet to check: what the keeper needs capabilities for."""
    words = ('--network-id', 'network-c', '--namespace', world.router, '--interface', 'qr-in')
    host.metadata_wsgi('attach', '--no-wait', '--mode', 'shared', *words)
    assert stored(host) == 2, host.text()
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    assert namespaces.run_in(world.guest, ask) == 'instance-c', host.text()
    assert stored(host) == 2
    host.metadata_wsgi('detach', *words[:-2])
    assert stored(host) == 0


def test_a_process_in_a_namespace_reaches_the_agent_of_the_unit(host, world, attach):
    attach('process')
    assert namespaces.run_in(world.guest, ask) == 'instance-a', host.text()
    assert stored(host) == 0


def test_the_secret_as_a_credential(host, world, attach):
    """The line is in the unit, commented out."""
    commented = (UNITS / f'{AGENT}.service').read_text().splitlines()
    (line,) = [line for line in commented if line.startswith(f'#LoadCredential={SECRET_FILE}:')]
    drop_in = f'/etc/systemd/system/{AGENT}.service.d/credential.conf'
    host.run('sh', '-c', f'printf "[Service]\\n{line[1:]}\\n" > {drop_in}', check=True)
    host.run('sed', '-i', f'/^{SECRET_FILE} /d', '/etc/metadata_wsgi/metadata_agent.ini', check=True)
    host.run('chmod', '600', f'/etc/metadata_wsgi/{SECRET_FILE}', check=True)
    host.systemctl('daemon-reload')
    host.systemctl('restart', AGENT)
    eventually(lambda: 'one_hop' in workers(host), lambda: f'it follows: {host.text()}')
    attach('one_hop')
    assert namespaces.run_in(world.guest, ask) == 'instance-a', host.text()


def test_what_the_units_take_away_is_taken_away(host):
    for unit in ALL:
        lines = host.run('cat', f'/proc/{pid(host, unit)}/status').stdout.splitlines()
        status = dict(line.split(':\t', 1) for line in lines if ':\t' in line)
        keeps = sum(1 << number for number in CAPABILITIES.values()) if unit == KEEPER else 0
        uid = 0 if unit == KEEPER else USER
        assert (unit, status['CapBnd'], status['CapEff']) == (unit, f'{keeps:016x}', f'{keeps:016x}')
        assert (status['Uid'].split(), status['NoNewPrivs'], status['Seccomp']) == ([str(uid)] * 4, '1', '2')


@pytest.mark.parametrize('unit', ALL)
@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_each_may_be_restarted_and_killed_and_no_guest_is_refused(host, attach, load, mode, unit):
    attach(mode)
    asking = load()
    before = pid(host, unit)
    if unit != KEEPER:
        host.systemctl('reload', unit)
        asking.more()
        assert pid(host, unit) == before
    host.systemctl('restart', unit)
    asking.more()
    assert asking.failures == [], host.text()
    for _ in range(2):
        former = pid(host, unit)
        assert former != before
        host.systemctl('kill', '--signal', 'KILL', unit)
        eventually(lambda former=former: pid(host, unit) not in (0, former), 'systemd started it again')
        enough = asking.answered + 30
        eventually(lambda enough=enough: asking.answered > enough, lambda: f'served: {host.text()}')
    assert refused(asking) == []
    assert owners(host) == AS_INTENDED
    all_is_well(host)


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_keeper_and_workers_killed_together_refuse_nobody(host, attach, load, mode):
    """The one thing that neither has of the other: systemd has it."""
    attach(mode)
    assert stored(host) == 1
    asking = load()
    for _ in range(2):
        former = [pid(host, unit) for unit in ALL]
        host.systemctl('kill', '--signal', 'KILL', *ALL)
        eventually(lambda former=former: not {0, *former} & {pid(host, unit) for unit in ALL}, 'all started again')
        enough = asking.answered + 30
        eventually(lambda enough=enough: asking.answered > enough, lambda: f'served: {host.text()}')
    assert refused(asking) == []
    assert stored(host) == 1
    all_is_well(host)


def test_a_guest_that_connects_while_nobody_runs_waits_and_is_answered(host, world, attach):
    attach('shared')
    host.systemctl('stop', PROXY)
    # Its backlog is in systemd alone.
    host.systemctl('kill', '--signal', 'KILL', KEEPER)
    asking = Load([(world.guest, 'instance-a')])
    try:
        eventually(lambda: host.shown(KEEPER, 'ActiveState') == 'active', 'the keeper is back')
        assert (asking.answered, asking.failures) == (0, [])
        host.systemctl('start', PROXY)
        asking.more()
    finally:
        asking.stop()
    assert asking.failures == []


def test_another_mode_and_a_detach_reach_the_store(host, world, attach):
    attach('shared')
    attach('one_hop')
    assert stored(host) == 1
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    eventually(lambda: namespaces.run_in(world.guest, ask) == 'instance-a', 'served')
    assert 'one_hop' in host.metadata_wsgi('attached').stdout
    host.metadata_wsgi('detach', '--router-id', 'router-a', '--namespace', world.router)
    host.systemctl('kill', '--signal', 'KILL', *ALL)
    eventually(lambda: workers(host) == {'shared', 'one_hop'}, 'both follow')
    assert (stored(host), 'router-a' in host.metadata_wsgi('attached').stdout) == (0, False)


def test_all_stopped_and_started_needs_an_attach_and_nothing_else(host, world, attach):
    attach('shared')
    host.systemctl('stop', *ALL)
    host.systemctl('start', *ALL)
    assert owners(host) == AS_INTENDED
    eventually(lambda: workers(host) == {'shared', 'one_hop'}, 'both follow')
    assert host.metadata_wsgi('attached', check=False).returncode == 1
    attach('shared')
    assert namespaces.run_in(world.guest, ask) == 'instance-a'
    all_is_well(host)


@pytest.mark.parametrize('unit', ALL)
def test_the_exposure_is_what_the_documentation_says(unit):
    if what_is_missing():
        pytest.skip('systemd is not installed')
    text = (CHECKOUT / 'doc' / 'threat_model.md').read_text()
    version = subprocess.run(['systemd-analyze', '--version'], capture_output=True, text=True, check=True).stdout
    if not version.startswith('systemd 252 '):
        pytest.skip('each version counts otherwise, and the documentation quotes 252')
    said = subprocess.run(
        ['systemd-analyze', 'security', '--no-pager', '--offline=true', UNITS / f'{unit}.service'],
        capture_output=True, text=True, check=False, env={**os.environ, 'SYSTEMD_COLORS': '0'},
    ).stdout  # fmt: skip
    exposure = re.search(r'exposure level for \S+ ([\d.]+)', said)
    assert exposure, said
    assert f'| `{unit}.service` | {exposure[1]} |' in text
