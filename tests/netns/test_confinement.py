# SPDX-License-Identifier: Apache-2.0
"""What an attacker who controls a worker can do: tried inside it, and checked from outside."""

import json
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from metadata_wsgi.netns import namespaces
from metadata_wsgi.privileges import identity
from tests.e2e.conftest import BIN, UnixConnection, eventually, rejects_unidentified_request, request

pytestmark = pytest.mark.netns

NO_CAPABILITIES = '0000000000000000'
NOT_PERMITTED = os.strerror(1)
ACCESS_DENIED = os.strerror(13)


@pytest.fixture
def probe(cloud, directory, monkeypatch, topology):
    """Makes the agent serve an app that tries forbidden operations; returns a function that gets the results."""
    secret = directory / 'secret'
    secret.write_text('of root')
    secret.chmod(0o600)
    paste = directory / 'probe.ini'
    paste.write_text(
        '[app:agent]\nuse = call:tests.privilege_probe_app:app_factory\n'
        f'namespace = /run/netns/{topology.router}\nsecret_file = {secret}\n'
    )
    cloud.configure(metadata_paste_config=paste)
    cloud.conf_file.chmod(0o600)
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent.parent.parent))
    return lambda: json.loads(request(UnixConnection(cloud.socket), 'GET', '/')[2])


def status_of_worker(program):
    """The lines of /proc/<pid>/status of the program's worker as a dictionary, after it dropped its privileges."""
    eventually(lambda: len(program.workers()) == 1, 'a former worker has ended')
    pid = program.workers()[0]
    eventually(lambda: 'NoNewPrivs:\t1' in Path(f'/proc/{pid}/status').read_text(), 'the worker has dropped')
    eventually(lambda: 'Seccomp:\t2' in Path(f'/proc/{pid}/status').read_text(), 'the worker has its filter')
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    return dict(line.split(':\t', 1) for line in lines if ':\t' in line)


def assert_confined(status, uid, gid):
    assert status['Uid'].split() == [str(uid)] * 4
    assert status['Gid'].split() == [str(gid)] * 4
    assert status['Groups'].strip() == ''
    assert {status[f'Cap{name}'] for name in ('Inh', 'Prm', 'Eff', 'Bnd', 'Amb')} == {NO_CAPABILITIES}
    assert (status['NoNewPrivs'], status['Seccomp']) == ('1', '2')


def test_confined_worker_of_the_agent_can_do_nothing(agent, probe):
    agent()
    result = probe()
    default = identity.default_identity()
    assert_confined(result['status'], default.uid, default.gid)
    assert (result['core'], result['dumpable']) == ([0, 0], 0)
    # Read before it dropped its privileges.
    assert result['loaded'] == 'of root'
    outcomes = result['outcomes']
    assert outcomes.pop('read a secret') == ACCESS_DENIED
    assert outcomes.pop('see packets') == os.strerror(97)
    assert outcomes.pop('listen below 1024') == ACCESS_DENIED
    assert (outcomes.pop('open a socket'), outcomes.pop('start a thread')) == ('done', 'done')
    assert set(outcomes.values()) == {NOT_PERMITTED}, outcomes


def test_agent_started_without_root_gives_up_what_it_can(agent, cloud, probe, directory, for_other_users):
    os.chown(directory, 12345, 12345)
    for path in (cloud.conf_file, directory / 'secret'):
        os.chown(path, 12345, 12345)
    agent(*for_other_users, 'setpriv', '--reuid=12345', '--regid=12345', '--clear-groups', '--')
    result = probe()
    status = result['status']
    assert (status['Uid'].split()[0], status['CapEff'], status['NoNewPrivs'], status['Seccomp']) == (
        '12345', NO_CAPABILITIES, '1', '2',
    )  # fmt: skip
    assert result['outcomes']['run a program'] == result['outcomes']['make a namespace'] == NOT_PERMITTED


def test_worker_runs_as_the_configured_user_and_group(agent, cloud, probe):
    cloud.configure(
        metadata_paste_config=cloud.conf_file.parent / 'probe.ini', metadata_user=12346, metadata_group=12347
    )
    agent()
    assert_confined(probe()['status'], 12346, 12347)


def test_sighup_reads_a_configuration_that_only_root_may_read(agent, cloud):
    program = agent()
    cloud.configure(answer_within=3)
    cloud.conf_file.chmod(0o600)
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: program.workers() and not set(before) & set(program.workers()), 'the workers are new')
    eventually(lambda: rejects_unidentified_request(cloud.socket), 'they serve')
    assert 'Not reloaded' not in program.text()
    assert_confined(status_of_worker(program), identity.default_identity().uid, identity.default_identity().gid)


def test_unknown_user_stops_the_start(start, cloud):
    cloud.configure(metadata_user='no-such-user')
    program = start('agent', BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert program.wait() == 1
    assert 'metadata_user = no-such-user: there is no such user' in program.text()


def proxy_argv(cloud, router_id, *more):
    """The command line of an L3 agent of Grizzly, in the foreground."""
    return [
        BIN / 'quantum-ns-metadata-proxy', '--nodaemonize', f'--router_id={router_id}', '--verbose',
        f'--state_path={cloud.state_path}', '--metadata_port=9697', *more,
    ]  # fmt: skip


@pytest.fixture
def proxy(start, cloud, topology):
    def started(*more):
        argv = proxy_argv(cloud, cloud.router_id, *more)
        program = start('proxy', 'ip', 'netns', 'exec', topology.router, *argv)
        eventually(lambda: program.process.poll() is not None or program.has_workers(), 'the proxy has a worker')
        assert program.process.poll() is None, program.text()
        return program

    return started


def send_request(topology, cloud):
    """Send a request inside the router's namespace, over loopback: neither rules nor the destination check apply."""
    result = namespaces.run_in(topology.router, lambda: subprocess.run(
        ['curl', '-s', 'http://127.0.0.1:9697/'], capture_output=True, text=True, check=False))  # fmt: skip
    return result.stdout


def test_proxy_of_an_l3_agent_reaches_the_agent_unprivileged(agent, proxy, topology, cloud):
    agent()
    program = proxy()
    assert 'instance-a' in send_request(topology, cloud), program.text()
    default = identity.default_identity()
    assert_confined(status_of_worker(program), default.uid, default.gid)
    assert stat.S_IMODE(cloud.socket.stat().st_mode) == 0o660


def test_proxy_runs_as_its_configured_user(agent, proxy, topology, cloud):
    cloud.configure(metadata_proxy_user=12348, metadata_proxy_group=12349)
    agent()
    assert (cloud.socket.stat().st_uid, cloud.socket.stat().st_gid) == (12348, 12349)
    program = proxy('--metadata_proxy_user=12348', '--metadata_proxy_group=12349')
    assert 'instance-a' in send_request(topology, cloud), program.text()
    assert_confined(status_of_worker(program), 12348, 12349)


@pytest.fixture(params=['agent first', 'proxy first'])
def both(request, agent, proxy, topology, cloud):
    """Starts agent and proxy, without user options, in this order; returns the proxy when requests are served."""

    def started():
        cloud.state_path.mkdir(exist_ok=True)
        if request.param == 'agent first':
            agent()
            program = proxy()
        else:
            program = proxy()
            default = identity.default_identity()
            assert_confined(status_of_worker(program), default.uid, default.gid)
            agent()
        eventually(lambda: 'instance-a' in send_request(topology, cloud), program.text)
        return program

    return started


def test_proxy_identity_is_the_default_whichever_user_owns_the_directory(both, cloud):
    """A package may create it for another user than the one that may connect."""
    cloud.state_path.mkdir()
    os.chown(cloud.state_path, 12345, 12345)
    default = identity.default_identity()
    assert_confined(status_of_worker(both()), default.uid, default.gid)


def test_proxy_identity_has_the_group_of_the_socket(both, cloud):
    cloud.configure(metadata_proxy_group=12349)
    assert_confined(status_of_worker(both()), identity.default_identity().uid, 12349)


def test_proxy_identity_is_the_owner_of_the_socket(both, cloud):
    """With ``deduce`` only the owner may connect."""
    cloud.configure(metadata_proxy_user=12348)
    assert_confined(status_of_worker(both()), 12348, identity.default_identity().gid)


def test_proxy_identity_is_the_default_where_every_user_may_connect(both, cloud):
    cloud.configure(metadata_proxy_user=12348, metadata_proxy_socket_mode='all')
    default = identity.default_identity()
    assert_confined(status_of_worker(both()), default.uid, default.gid)


UNAVAILABLE = 'The metadata service is not available now.\n'


@pytest.fixture
def unreachable(agent, proxy, topology, cloud):
    """Starts agent and proxy; checks that requests are answered 503 by an unprivileged worker; returns the proxy."""

    def started():
        agent()
        program = proxy('--request_timeout=0.5')
        assert send_request(topology, cloud) == UNAVAILABLE
        default = identity.default_identity()
        assert_confined(status_of_worker(program), default.uid, default.gid)
        return program

    return started


def test_proxy_that_cannot_reach_the_agent_never_runs_as_root(unreachable, cloud):
    cloud.state_path.mkdir(mode=0o700)
    program = unreachable()
    assert f'Clients will get 503: the user {identity.default_identity().name} may not enter ' in program.text()


def test_proxy_never_runs_as_root_where_only_root_may_connect(unreachable, cloud):
    cloud.configure(metadata_proxy_user='root')
    program = unreachable()
    assert 'Clients will get 503: only root may connect to ' in program.text()


@pytest.mark.parametrize('user', ['root', '0'])
def test_root_as_the_configured_user_of_workers_stops_the_start(start, cloud, topology, user):
    cloud.configure(metadata_user=user)
    agent = start('agent', BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file)
    proxy = start('proxy', *proxy_argv(cloud, 'router-a', f'--metadata_proxy_user={user}'))
    for program, option in ((agent, 'metadata_user'), (proxy, 'metadata_proxy_user')):
        assert program.wait() == 1
        assert f'{option} = {user}: workers parse client data and never run as root' in program.text()


def test_proxy_does_not_become_root_for_a_stale_socket_in_a_closed_directory(proxy, cloud):
    cloud.state_path.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(cloud.socket))
    default = identity.default_identity()
    assert_confined(status_of_worker(proxy()), default.uid, default.gid)


def test_proxy_identity_changes_when_the_agent_is_restarted_with_another_group(agent, proxy, topology, cloud):
    before = agent()
    program = proxy()
    assert 'instance-a' in send_request(topology, cloud)
    before.end()
    cloud.configure(metadata_proxy_group=12349)
    agent()
    eventually(lambda: 'instance-a' in send_request(topology, cloud), program.text)
    assert_confined(status_of_worker(program), identity.default_identity().uid, 12349)
