# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi-haproxy`` in the place of haproxy, ``adopt`` and ``give-back``, with real namespaces and programs.

The world: a keeper, one shared namespace proxy, and a stand-in for the agent on a unix socket that answers with the
router's id. Each router has a namespace with Neutron's redirect rule and an instance's interface in this namespace;
routing by source address makes each connection leave through its own router.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.netns import haproxy
from tests.unit.test_haproxy_program import LISTEN, TOP

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces'),
]

SHIM = Path(__file__).parents[2] / 'bin' / 'metadata-wsgi-haproxy'
BIN = Path(sys.prefix, 'bin')
ROUTERS = 50 if os.environ.get('METADATA_WSGI_NIGHTLY') else 6
TABLE = 47000


def run(*argv, **options):
    return subprocess.run(list(map(str, argv)), check=True, capture_output=True, text=True, **options).stdout


def until(condition, within_s=60.0):
    """Wait for a condition; a test that waits in vain fails."""
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, 'the condition did not come true'
        time.sleep(0.02)


class Agent(threading.Thread):
    """Answers on a unix socket, in the place of the agent: 200 with the id header of the request."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1024)
        os.chmod(path, 0o666)

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            data = b''
            while chunk := connection.recv(65536):
                data += chunk
                while b'\r\n\r\n' in data:
                    head, _, data = data.partition(b'\r\n\r\n')
                    id_ = next(line.split(b': ')[1] for line in head.split(b'\r\n') if b'-router-id' in line.lower())
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (len(id_), id_))


class Node:
    """A network node: its state path, its routers, the programs that serve them."""

    def __init__(self, state_path):
        self.state_path = state_path
        self.ids = []
        self._programs = []
        for name in ('ns-metadata-proxy', 'external/pids'):
            (state_path / name).mkdir(parents=True)
        state_path.chmod(0o755)
        self._agent = Agent(str(state_path / 'metadata_proxy'))
        self._agent.start()

    def start(self):
        """Start keeper and shared proxy; returns when the proxy has a worker that is connected to the keeper."""
        proxy = [BIN / 'quantum-ns-metadata-proxy', '--shared', '--nodaemonize', '--state_path', self.state_path,
                 '--metadata_proxy_socket', self.state_path / 'metadata_proxy']  # fmt: skip
        with open(self.state_path / 'log', 'a') as log:
            self._programs = [
                subprocess.Popen(argv, stdout=log, stderr=log)
                for argv in ([BIN / 'metadata-wsgi', 'keeper', '--state-path', self.state_path], proxy)
            ]
        try:
            until(self._has_workers)
        except AssertionError:
            pytest.fail((self.state_path / 'log').read_text())

    def _has_workers(self):
        try:
            with admin_client.connect(str(self.state_path)) as keeper:
                return bool(keeper.list('')[1])
        except NetnsError:
            return False

    def kill(self):
        """SIGKILL keeper and shared proxy with its workers, together."""
        for program in self._programs:
            with contextlib.suppress(OSError):
                for child in Path(f'/proc/{program.pid}/task/{program.pid}/children').read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            program.kill()
        for program in self._programs:
            program.wait()

    def close(self):
        self.kill()
        for proxy in haproxy.running(str(self.state_path)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(proxy.pid, signal.SIGKILL)
        for number, id_ in enumerate(self.ids):
            subprocess.run(['ip', 'netns', 'del', f'qrouter-{id_}'], check=False, capture_output=True)
            subprocess.run(['ip', 'rule', 'del', 'table', str(TABLE + number)], check=False, capture_output=True)
        self._agent.close()

    def add_router(self):
        """A namespace as the L3 agent makes it, and the interface of an instance behind it; returns the id."""
        number, id_ = len(self.ids), f'{len(self.ids):08}-2222-4333-8444-555555555555'
        namespace, inside, network = f'qrouter-{id_}', f'seam{number}', f'10.47.{number}'
        run('ip', 'netns', 'add', namespace)
        self.ids.append(id_)
        run('ip', '-n', namespace, 'link', 'set', 'lo', 'up')
        run('ip', 'link', 'add', inside, 'type', 'veth', 'peer', 'name', 'qr-1', 'netns', namespace)
        run('ip', 'addr', 'add', f'{network}.2/24', 'dev', inside)
        run('ip', 'link', 'set', inside, 'up')
        run('ip', '-n', namespace, 'addr', 'add', f'{network}.1/24', 'dev', 'qr-1')
        run('ip', '-n', namespace, 'link', 'set', 'qr-1', 'up')
        run('ip', 'netns', 'exec', namespace, 'iptables', '-t', 'nat', '-A', 'PREROUTING', '-d', '169.254.169.254/32',
            '-i', 'qr-+', '-p', 'tcp', '--dport', '80', '-j', 'REDIRECT', '--to-ports', '9697')  # fmt: skip
        run('ip', 'route', 'add', '169.254.169.254', 'via', f'{network}.1', 'dev', inside, 'table', TABLE + number)
        run('ip', 'rule', 'add', 'from', f'{network}.2', 'table', TABLE + number)
        return id_

    def configuration(self, id_):
        """Write what Neutron writes for a router; returns its path."""
        path = self.state_path / 'ns-metadata-proxy' / f'{id_}.conf'
        header = f'http-request del-header X-Neutron-Network-ID\n    http-request set-header X-Neutron-Router-ID {id_}'
        text = (TOP + LISTEN).format(
            level='info', id=id_, pids=self.state_path / 'external' / 'pids', binds='bind 0.0.0.0:9697', headers=header
        )
        path.write_text(
            text.replace('/var/lib/neutron/metadata_proxy', str(self.state_path / 'metadata_proxy'))
            .replace('user        neutron', 'user        root')
            .replace('group       neutron', 'group       root')
        )
        return path

    def start_proxy(self, id_, program):
        """Start ``program`` as an agent starts haproxy, and wait for the end of its output as an agent does."""
        return run('ip', 'netns', 'exec', f'qrouter-{id_}', 'env', f'PROCESS_TAG=haproxy-{id_}', program, '-f',
                   self.configuration(id_), timeout=30)  # fmt: skip

    def pid(self, id_):
        return int((self.state_path / 'external' / 'pids' / f'{id_}.pid.haproxy').read_text())

    def get(self, id_, timeout_s=10.0):
        """Ask 169.254.169.254 as the instance behind the router; the body. Raises OSError."""
        address = (f'10.47.{self.ids.index(id_)}.2', 0)
        with socket.create_connection(('169.254.169.254', 80), timeout_s, address) as connection:
            connection.sendall(b'GET /x HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n')
            data = b''
            while chunk := connection.recv(65536):
                data += chunk
        assert data.startswith(b'HTTP/1.1 200'), data
        return data.rpartition(b'\r\n\r\n')[2].decode()


@pytest.fixture
def node(tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    made = Node(tmp_path / 'neutron')
    try:
        made.start()
        yield made
    finally:
        made.close()


def is_alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_the_contract_of_a_neutron_agent_with_its_proxy(node):
    id_ = node.add_router()
    node.start_proxy(id_, SHIM)
    pid = node.pid(id_)
    assert id_ in Path(f'/proc/{pid}/cmdline').read_text()
    assert {os.readlink(f'/proc/{pid}/fd/{fd}') for fd in (1, 2)} == {'/dev/null'}
    assert os.getsid(pid) == pid
    assert f'PROCESS_TAG=haproxy-{id_}' in Path(f'/proc/{pid}/environ').read_text().split('\0')
    assert node.get(id_) == id_
    os.kill(pid, signal.SIGTERM)
    until(lambda: not is_alive(pid))
    with pytest.raises(ConnectionRefusedError):
        node.get(id_)


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


def test_without_workers_the_real_haproxy_is_started(tmp_path):
    if not shutil.which('haproxy', path=os.environ['PATH'] + ':/usr/sbin'):
        pytest.fail('haproxy is not installed')
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    node = Node(tmp_path / 'neutron')
    try:
        id_ = node.add_router()
        node.start_proxy(id_, SHIM)
        assert os.path.basename(os.readlink(f'/proc/{node.pid(id_)}/exe')) == 'haproxy'
        assert node.get(id_) == id_
    finally:
        node.close()


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
        assert run(*convert).startswith(f'{ROUTERS} converted, 0 were already, 0 failed')
        until(lambda: not any(map(is_alive, old)))
        assert run(*convert).startswith(f'0 converted, {ROUTERS} were already, 0 failed')
    assert clients.failures == []
    assert not any(proxy.is_haproxy for proxy in haproxy.running(str(node.state_path)))
    with Clients(node) as clients:
        run(BIN / 'metadata-wsgi', 'give-back', '--all', '--state-path', node.state_path)
    assert clients.failures == []
    assert [proxy.is_haproxy for proxy in haproxy.running(str(node.state_path))] == [True] * ROUTERS
