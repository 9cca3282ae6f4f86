# SPDX-License-Identifier: Apache-2.0
"""What somebody who has taken a worker over can do: asked from inside it, and seen from outside."""

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
from tests.e2e.conftest import BIN, UnixConnection, eventually, nobody_is_refused, request

pytestmark = pytest.mark.netns

NONE = '0000000000000000'
NO = os.strerror(1)
DENIED = os.strerror(13)


@pytest.fixture
def probe(cloud, directory, monkeypatch, world):
    """Makes the agent serve the app that tries; returns how to ask it."""
    secret = directory / 'secret'
    secret.write_text('of root')
    secret.chmod(0o600)
    paste = directory / 'probe.ini'
    paste.write_text(
        '[app:agent]\nuse = call:tests.privilege_probe_app:app_factory\n'
        f'namespace = /run/netns/{world.router}\nsecret_file = {secret}\n'
    )
    cloud.configure(api_paste_config=paste)
    cloud.conf_file.chmod(0o600)
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent.parent.parent))
    return lambda: json.loads(request(UnixConnection(cloud.socket), 'GET', '/')[2])


def seen(program):
    """The lines of /proc/<pid>/status of the program's worker, as a dictionary, when it has dropped."""
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
    assert {status[f'Cap{name}'] for name in ('Inh', 'Prm', 'Eff', 'Bnd', 'Amb')} == {NONE}
    assert (status['NoNewPrivs'], status['Seccomp']) == ('1', '2')


def test_from_inside_the_agents_worker_nothing_can_be_done(agent, probe):
    agent()
    said = probe()
    usual = identity.usual()
    assert_confined(said['status'], usual.uid, usual.gid)
    assert (said['core'], said['dumpable']) == ([0, 0], 0)
    # Read while it was root: what it needs is loaded before.
    assert said['loaded'] == 'of root'
    outcomes = said['outcomes']
    assert outcomes.pop('read a secret') == DENIED
    assert outcomes.pop('see packets') == os.strerror(97)
    assert outcomes.pop('listen below 1024') == DENIED
    assert (outcomes.pop('open a socket'), outcomes.pop('start a thread')) == ('done', 'done')
    assert set(outcomes.values()) == {NO}, outcomes


def test_without_root_it_works_and_what_needs_no_root_is_given_up(agent, cloud, probe, directory, for_other_users):
    os.chown(directory, 12345, 12345)
    for path in (cloud.conf_file, directory / 'secret'):
        os.chown(path, 12345, 12345)
    agent(*for_other_users, 'setpriv', '--reuid=12345', '--regid=12345', '--clear-groups', '--')
    said = probe()
    status = said['status']
    assert (status['Uid'].split()[0], status['CapEff'], status['NoNewPrivs'], status['Seccomp']) == (
        '12345', NONE, '1', '2',
    )  # fmt: skip
    assert said['outcomes']['run a program'] == said['outcomes']['make a namespace'] == NO


def test_the_user_and_group_of_the_options(agent, cloud, probe):
    cloud.configure(api_paste_config=cloud.conf_file.parent / 'probe.ini', metadata_user=12346, metadata_group=12347)
    agent()
    assert_confined(probe()['status'], 12346, 12347)


def test_a_configuration_that_only_root_reads_is_read_again_on_sighup(agent, cloud):
    program = agent()
    cloud.configure(answer_within=3)
    cloud.conf_file.chmod(0o600)
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: program.workers() and not set(before) & set(program.workers()), 'the workers are new')
    eventually(lambda: nobody_is_refused(cloud.socket), 'they serve')
    assert 'Not reloaded' not in program.text()
    assert_confined(seen(program), identity.usual().uid, identity.usual().gid)


def test_a_user_that_is_not_there_stops_the_start(start, cloud):
    cloud.configure(metadata_user='no-such-user')
    program = start('agent', BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert program.wait() == 1
    assert 'metadata_user = no-such-user: there is no such user' in program.text()


def proxy_argv(cloud, router_id, *more):
    """As an L3 agent of Grizzly writes it, in the foreground."""
    return [
        BIN / 'quantum-ns-metadata-proxy', '--nodaemonize', f'--router_id={router_id}', '--verbose',
        f'--state_path={cloud.state_path}', '--metadata_port=9697', *more,
    ]  # fmt: skip


@pytest.fixture
def proxy(start, cloud, world):
    def started(*more):
        argv = proxy_argv(cloud, cloud.router_id, *more)
        program = start('proxy', 'ip', 'netns', 'exec', world.router, *argv)
        eventually(lambda: program.process.poll() is not None or program.has_workers(), 'the proxy has a worker')
        assert program.process.poll() is None, program.text()
        return program

    return started


def ask(world, cloud):
    """From inside the router's namespace, where no rule and no check is in the way."""
    said = namespaces.run_in(world.router, lambda: subprocess.run(
        ['curl', '-s', 'http://127.0.0.1:9697/'], capture_output=True, text=True, check=False))  # fmt: skip
    return said.stdout


def test_an_l3_agents_proxy_reaches_the_agents_socket_unprivileged(agent, proxy, world, cloud):
    agent()
    program = proxy()
    assert 'instance-a' in ask(world, cloud), program.text()
    usual = identity.usual()
    assert_confined(seen(program), usual.uid, usual.gid)
    assert stat.S_IMODE(cloud.socket.stat().st_mode) == 0o660


def test_a_proxy_with_a_user_of_its_own(agent, proxy, world, cloud):
    cloud.configure(metadata_proxy_user=12348, metadata_proxy_group=12349)
    agent()
    assert (cloud.socket.stat().st_uid, cloud.socket.stat().st_gid) == (12348, 12349)
    program = proxy('--metadata_proxy_user=12348', '--metadata_proxy_group=12349')
    assert 'instance-a' in ask(world, cloud), program.text()
    assert_confined(seen(program), 12348, 12349)


@pytest.fixture(params=['agent first', 'proxy first'])
def both(request, agent, proxy, world, cloud):
    """Starts agent and proxy, told nothing, in this order; returns the proxy's program when a guest is served."""

    def started():
        cloud.state_path.mkdir(exist_ok=True)
        if request.param == 'agent first':
            agent()
            program = proxy()
        else:
            program = proxy()
            usual = identity.usual()
            assert_confined(seen(program), usual.uid, usual.gid)
            agent()
        eventually(lambda: 'instance-a' in ask(world, cloud), program.text)
        return program

    return started


def test_a_proxy_told_nothing_becomes_the_usual_user_whoever_owns_the_directory(both, cloud):
    """A package makes it for a user of its own, who need not be the one that may connect."""
    cloud.state_path.mkdir()
    os.chown(cloud.state_path, 12345, 12345)
    usual = identity.usual()
    assert_confined(seen(both()), usual.uid, usual.gid)


def test_a_proxy_told_nothing_follows_the_group_of_the_socket(both, cloud):
    cloud.configure(metadata_proxy_group=12349)
    assert_confined(seen(both()), identity.usual().uid, 12349)


def test_a_proxy_told_nothing_follows_the_owner_of_the_socket(both, cloud):
    """``deduce`` lets in the owner alone."""
    cloud.configure(metadata_proxy_user=12348)
    assert_confined(seen(both()), 12348, identity.usual().gid)


def test_a_proxy_told_nothing_is_the_usual_user_where_everybody_may_connect(both, cloud):
    cloud.configure(metadata_proxy_user=12348, metadata_proxy_socket_mode='all')
    usual = identity.usual()
    assert_confined(seen(both()), usual.uid, usual.gid)


def test_a_proxy_that_could_not_reach_the_agent_stays_root_without_capabilities(both, cloud):
    cloud.state_path.mkdir(mode=0o700)
    program = both()
    assert_confined(seen(program), 0, 0)
    assert 'Serving as root, without capabilities: ' in program.text()


def test_a_proxy_stays_root_without_capabilities_where_only_root_may_connect(both, cloud):
    cloud.configure(metadata_proxy_user='root')
    program = both()
    assert_confined(seen(program), 0, 0)
    assert 'Serving as root, without capabilities: only root may connect to ' in program.text()


def test_a_proxy_does_not_become_root_for_a_socket_that_another_left_in_a_closed_directory(proxy, cloud):
    cloud.state_path.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(cloud.socket))
    usual = identity.usual()
    assert_confined(seen(proxy()), usual.uid, usual.gid)


def test_a_proxy_follows_an_agent_that_is_started_again_with_another_group(agent, proxy, world, cloud):
    before = agent()
    program = proxy()
    assert 'instance-a' in ask(world, cloud)
    before.end()
    cloud.configure(metadata_proxy_group=12349)
    agent()
    eventually(lambda: 'instance-a' in ask(world, cloud), program.text)
    assert_confined(seen(program), identity.usual().uid, 12349)
