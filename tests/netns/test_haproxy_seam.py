# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi-haproxy`` in the place of haproxy, ``adopt`` and ``give-back``, with real namespaces and programs."""

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.netns import haproxy
from tests.netns import neutron_node
from tests.netns.neutron_node import BIN, SHIM, Node, is_alive, run, until

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces'),
]

ROUTERS = 50 if os.environ.get('METADATA_WSGI_NIGHTLY') else 6


@pytest.fixture
def node(tmp_path):
    with neutron_node.running(tmp_path) as made:
        yield made


def test_the_contract_of_a_neutron_agent_with_its_proxy(node):
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    pid = node.pid(id_)
    assert id_ in Path(f'/proc/{pid}/cmdline').read_text()
    assert {os.readlink(f'/proc/{pid}/fd/{fd}') for fd in (1, 2)} == {'/dev/null'}
    assert os.getsid(pid) == pid
    assert f'PROCESS_TAG=haproxy-{id_}' in Path(f'/proc/{pid}/environ').read_text().split('\0')
    assert node.get(id_) == id_
    # The exit code is not 0 if a problem is found. The agent's rules are not ours.
    assert ' yes' in run(BIN / 'metadata-wsgi', 'attached', '--state-path', node.state_path)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not is_alive(pid))
    until(lambda: node.is_refused(id_))


def test_a_holder_costs_less_than_512_kib(node):
    for _ in range(4):
        node.start_proxy(node.add_router(), SHIM)
    for id_ in node.ids:
        rollup = Path(f'/proc/{node.pid(id_)}/smaps_rollup').read_text()
        assert int(next(line for line in rollup.splitlines() if line.startswith('Pss:')).split()[1]) < 512


def test_an_agent_restart_that_kills_the_holder_refuses_no_client(node):
    """As where the agent's container is restarted: the keeper goes on, and the agent starts its proxies again."""
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    os.kill(node.pid(id_), signal.SIGKILL)
    assert node.get(id_) == id_
    node.start_proxy(id_, SHIM)
    assert is_alive(node.pid(id_))
    assert node.get(id_) == id_


def test_a_former_holder_that_ends_late_changes_nothing_for_its_replacement(node):
    """An agent that replaces its proxy sends SIGTERM and does not wait until the former proxy has ended."""
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    former = node.pid(id_)
    node.start_proxy(id_, SHIM)
    os.kill(former, signal.SIGTERM)
    until(lambda: not is_alive(former))
    assert node.get(id_) == id_
    assert is_alive(node.pid(id_))
    assert node.pid(id_) != former
    # The keeper still reaches the new holder: it ends with its namespace.
    run('ip', 'netns', 'del', f'qrouter-{id_}')
    until(lambda: not is_alive(node.pid(id_)))


def test_a_request_waits_while_keeper_and_workers_are_killed_together(node):
    """The holder has the only copy of the socket; a new keeper requests it."""
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    assert node.get(id_) == id_
    node.kill()
    bodies = []
    waiting = threading.Thread(target=lambda: bodies.append(node.get(id_, timeout_s=30.0)))
    waiting.start()
    node.start()
    waiting.join()
    assert bodies == [id_]


def test_a_holder_ends_with_its_namespace(node):
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    pid = node.pid(id_)
    run('ip', 'netns', 'del', f'qrouter-{id_}')
    until(lambda: not is_alive(pid))


def test_a_holder_ends_if_its_namespace_was_deleted_while_no_keeper_ran(node):
    """Its socket would keep the namespace in the kernel."""
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    pid = node.pid(id_)
    node.kill()
    run('ip', 'netns', 'del', f'qrouter-{id_}')
    node.start_missing()
    until(lambda: not is_alive(pid))


def test_without_workers_the_real_haproxy_is_started(tmp_path):
    if not shutil.which('haproxy', path=os.environ['PATH'] + ':/usr/sbin'):
        pytest.fail('haproxy is not installed')
    node = Node(tmp_path / 'neutron')
    try:
        id_ = node.add_router()
        node.start_proxy(id_, SHIM)
        assert os.path.basename(os.readlink(f'/proc/{node.pid(id_)}/exe')) == 'haproxy'
        assert node.get(id_) == id_
    finally:
        node.close()


def test_give_back_without_keeper_is_completed_when_the_keeper_runs(node):
    """A worker that has the socket sends it to the next keeper."""
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    give_back = [BIN / 'metadata-wsgi', 'give-back', '--all', '--state-path', node.state_path]
    node.kill_keeper()
    done = subprocess.run(list(map(str, give_back)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, '0 converted, 0 already converted, 1 failed\n')
    assert [proxy.is_haproxy for proxy in haproxy.running(str(node.state_path))] == [True]
    assert node.get(id_) == id_
    assert run(*give_back).startswith('0 converted, 1 already converted, 0 failed')
    node.start_missing()
    with admin_client.connect(str(node.state_path)) as keeper:
        until(lambda: keeper.list(id_)[0])
    assert run(*give_back).startswith('1 converted, 0 already converted, 0 failed')
    with admin_client.connect(str(node.state_path)) as keeper:
        assert keeper.list(id_)[0] == []
    assert run(*give_back).startswith('0 converted, 1 already converted, 0 failed')
    assert node.get(id_) == id_


def test_adopt_of_a_haproxy_beside_a_socket_of_the_keeper_leaves_no_socket_without_worker(node):
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    node.kill_keeper()
    give_back = [BIN / 'metadata-wsgi', 'give-back', '--all', '--state-path', node.state_path]
    assert subprocess.run(list(map(str, give_back)), capture_output=True, check=False).returncode == 1
    node.start_missing()
    with admin_client.connect(str(node.state_path)) as keeper:
        until(lambda: keeper.list(id_)[0])
    former = node.pid(id_)
    adopt = run(BIN / 'metadata-wsgi', 'adopt', '--all', '--state-path', node.state_path)
    assert adopt.startswith('1 converted, 0 already converted, 0 failed')
    until(lambda: not is_alive(former))
    # With SO_REUSEPORT the kernel chooses a socket by the client's port.
    assert [node.get(id_) for _ in range(20)] == [id_] * 20


def test_give_back_while_the_link_is_on_path_starts_the_real_haproxy(node, tmp_path):
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'haproxy').symlink_to(SHIM)
    give_back = [BIN / 'metadata-wsgi', 'give-back', '--all', '--state-path', node.state_path]
    done = run(*give_back, env={**os.environ, 'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'})
    assert done.startswith('1 converted, 0 already converted, 0 failed')
    assert [proxy.is_haproxy for proxy in haproxy.running(str(node.state_path))] == [True]
    assert node.get(id_) == id_


def test_give_back_of_a_socket_that_the_keeper_opened(node):
    """The keeper opens one when a namespace is made again. haproxy needs SO_REUSEPORT on it."""
    id_ = node.add_router()
    with admin_client.connect(str(node.state_path)) as keeper:
        keeper.register(Listener('shared', f'qrouter-{id_}', 9697, router_id=id_))
    node.start_proxy(id_, SHIM)
    give_back = run(BIN / 'metadata-wsgi', 'give-back', '--all', '--state-path', node.state_path)
    assert give_back.startswith('1 converted, 0 already converted, 0 failed')
    assert [node.get(id_) for _ in range(8)] == [id_] * 8


class Clients:
    """One client for each router, in a loop; counts requests, collects failures."""

    def __init__(self, node):
        self._node, self._stop = node, threading.Event()
        self.count, self.failures = 0, []
        self._threads = [threading.Thread(target=self._loop, args=(id_,)) for id_ in node.ids]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: self.count > 5 * len(self._threads))
        return self

    def __exit__(self, *_):
        reached = self.count + 5 * len(self._threads)
        until(lambda: self.count > reached)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _loop(self, id_):
        while not self._stop.is_set():
            try:
                assert self._node.get(id_) == id_
            except (OSError, AssertionError) as error:
                self.failures.append(f'{id_}: {error!r}')
            self.count += 1
            time.sleep(0.01)


def test_a_node_under_load_is_converted_in_both_directions_and_no_request_fails(node):
    for _ in range(ROUTERS):
        node.start_proxy(node.add_router(), 'haproxy')
    old = [node.pid(id_) for id_ in node.ids]
    with Clients(node) as clients:
        convert = [BIN / 'metadata-wsgi', 'adopt', '--all', '--state-path', node.state_path]
        assert run(*convert).startswith(f'{ROUTERS} converted, 0 already converted, 0 failed')
        until(lambda: not any(map(is_alive, old)))
        assert run(*convert).startswith(f'0 converted, {ROUTERS} already converted, 0 failed')
    assert clients.failures == []
    assert not any(proxy.is_haproxy for proxy in haproxy.running(str(node.state_path)))
    with Clients(node) as clients:
        run(BIN / 'metadata-wsgi', 'give-back', '--all', '--state-path', node.state_path)
    assert clients.failures == []
    assert [proxy.is_haproxy for proxy in haproxy.running(str(node.state_path))] == [True] * ROUTERS
