# SPDX-License-Identifier: Apache-2.0
"""The default mode: ``quantum-ns-metadata-proxy`` as an L3 agent starts it, and ``attach`` without ``--mode``."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client
from tests.netns.neutron_node import BIN, Node, is_alive, run, until

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces'),
]


@pytest.fixture
def node(tmp_path):
    """A node on which nothing runs; what the programs start there is ended."""
    made = Node(tmp_path / 'quantum')
    try:
        yield made
    finally:
        for process in Path('/proc').glob('[0-9]*'):
            try:
                words = (process / 'cmdline').read_bytes()
            except OSError:
                continue
            if str(made.state_path).encode() in words and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)
        made.close()


def start(node, id_, **options):
    """Start the proxy as Grizzly's L3 agent does."""
    argv = ['ip', 'netns', 'exec', f'qrouter-{id_}', BIN / 'quantum-ns-metadata-proxy', f'--router_id={id_}',
            f'--pid_file={pid_file(node, id_)}', f'--state_path={node.state_path}', '--metadata_port=9697',
            f'--log-dir={node.state_path}']  # fmt: skip
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **options)


def pid_file(node, id_):
    return node.state_path / 'external' / 'pids' / f'{id_}.pid'


def pid(node, id_):
    return int(pid_file(node, id_).read_text())


def workers(node):
    with admin_client.connect(str(node.state_path)) as keeper:
        return keeper.list('')[1]


def test_the_first_router_starts_keeper_and_shared_proxy_and_costs_a_holder(node):
    id_ = node.add_router()
    done = start(node, id_)
    assert done.returncode == 0, done.stderr
    assert node.get(id_) == id_
    assert workers(node) == {'shared': 1}
    assert id_ in Path(f'/proc/{pid(node, id_)}/cmdline').read_text()
    rollup = Path(f'/proc/{pid(node, id_)}/smaps_rollup').read_text()
    assert int(next(line for line in rollup.splitlines() if line.startswith('Pss:')).split()[1]) < 512


def test_many_routers_at_once_start_one_keeper_and_one_shared_proxy(node):
    ids = [node.add_router() for _ in range(5)]
    results = []
    threads = [threading.Thread(target=lambda id_=id_: results.append(start(node, id_))) for id_ in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in results] == [0] * 5, [done.stderr for done in results]
    assert workers(node) == {'shared': 1}
    assert [node.get(id_) for id_ in ids] == ids


def test_a_second_start_for_the_same_router_is_refused(node):
    id_ = node.add_router()
    assert start(node, id_).returncode == 0
    again = start(node, id_)
    assert again.returncode == 1
    assert f'already running with pid {pid(node, id_)}' in again.stderr


def handles(pid, number):
    """Whether the process has a handler of the signal. The shell of a holder sets it a moment after its start."""
    caught = re.search(r'^SigCgt:\s+(\w+)', Path(f'/proc/{pid}/status').read_text(), re.MULTILINE)[1]
    return int(caught, 16) >> (number - 1) & 1


def test_grizzlys_kill_and_respawn_refuses_no_client(node):
    """Its process manager ends a proxy with SIGKILL and starts another."""
    id_ = node.add_router()
    assert start(node, id_).returncode == 0
    holder = pid(node, id_)
    os.kill(holder, signal.SIGKILL)
    assert node.get(id_) == id_
    until(lambda: not is_alive(holder))
    assert start(node, id_).returncode == 0
    assert is_alive(pid(node, id_))
    assert node.get(id_) == id_


def test_sigterm_stops_serving(node):
    id_ = node.add_router()
    assert start(node, id_).returncode == 0
    holder = pid(node, id_)
    until(lambda: handles(holder, signal.SIGTERM))
    os.kill(holder, signal.SIGTERM)
    until(lambda: not is_alive(holder))
    until(lambda: node.is_refused(id_))


def test_without_a_shared_proxy_a_process_of_its_own_serves(node, tmp_path):
    """Here the keeper cannot listen: another program has its place."""
    id_ = node.add_router()
    (node.state_path / 'keeper').mkdir()
    done = start(node, id_)
    assert done.returncode == 0, done.stderr
    assert node.get(id_) == id_
    assert 'python' in os.path.basename(os.readlink(f'/proc/{pid(node, id_)}/exe'))


def test_attach_of_several_routers_without_mode_uses_the_shared_proxy_and_attached_finds_no_problem(node):
    ids = [node.add_router() for _ in range(3)]
    routers = [f'--router-id={id_}' for id_ in ids]
    attach = [BIN / 'metadata-wsgi', 'attach', '--no-wait', *routers, '--state-path', node.state_path]
    run(*attach)
    assert [node.get(id_) for id_ in ids] == ids
    table = run(BIN / 'metadata-wsgi', 'attached', '--state-path', node.state_path)
    assert [line.split()[3] for line in table.splitlines()[1:]] == ['shared'] * 3
    run(*attach)
    run(BIN / 'metadata-wsgi', 'detach', *routers, '--state-path', node.state_path)
    assert run(BIN / 'metadata-wsgi', 'attached', '--state-path', node.state_path).count('\n') == 1


def test_attach_leaves_the_holder_of_an_agent_and_detach_ends_it(node):
    id_ = node.add_router()
    assert start(node, id_).returncode == 0
    holder = pid(node, id_)
    common = ['--router-id', id_, '--state-path', node.state_path]
    run(BIN / 'metadata-wsgi', 'attach', '--no-wait', *common)
    assert is_alive(holder)
    assert node.get(id_) == id_
    assert '!' not in run(BIN / 'metadata-wsgi', 'attached', '--state-path', node.state_path)
    run(BIN / 'metadata-wsgi', 'detach', *common)
    until(lambda: not is_alive(holder))


def test_from_a_holder_to_a_process_and_back_no_client_is_refused(node):
    id_ = node.add_router()
    assert start(node, id_).returncode == 0
    failures, stop = [], threading.Event()

    def client():
        while not stop.is_set():
            try:
                assert node.get(id_) == id_
            except (OSError, AssertionError) as error:
                failures.append(repr(error))
            time.sleep(0.01)

    thread = threading.Thread(target=client)
    thread.start()
    common = ['--no-wait', '--router-id', id_, '--state-path', node.state_path]
    for mode in ('process', 'shared'):
        run(BIN / 'metadata-wsgi', 'attach', f'--mode={mode}', *common)
    stop.set()
    thread.join()
    assert failures == []


def test_the_keeper_is_not_in_the_namespace_of_a_router(node):
    """A process in it would keep a deleted namespace in the kernel."""
    id_ = node.add_router()
    assert start(node, id_).returncode == 0
    inside = run('ip', 'netns', 'pids', f'qrouter-{id_}').split()
    assert inside == [str(pid(node, id_))]


def test_no_keeper_is_left_unnoticed_where_none_runs(node):
    with pytest.raises(NetnsError), admin_client.connect(str(node.state_path)):
        pass
