# SPDX-License-Identifier: Apache-2.0
"""A network node as a Neutron agent has it, for tests of the program that stands in the place of haproxy.

It has a keeper, one shared namespace proxy, and a stand-in for the metadata agent on a unix socket that answers with
the router's id. Each router has a namespace with Neutron's redirect rule, and the interface of an instance in the
namespace of the test; routing by source address makes each connection leave through its own router.
"""

import contextlib
import os
import re
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

SHIM = Path(__file__).parents[2] / 'bin' / 'metadata-wsgi-haproxy'
BIN = Path(sys.prefix, 'bin')
TABLE = 47000
ID_HEADER = re.compile(rb'(?i)X-[A-Z]+-(Router|Network)-ID:')


def run(*argv, **options):
    return subprocess.run(list(map(str, argv)), check=True, capture_output=True, text=True, **options).stdout


def until(condition, within_s=60.0):
    """Wait for a condition; a test that waits in vain fails."""
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, 'the condition did not come true'
        time.sleep(0.02)


class Agent(threading.Thread):
    """Answers on a unix socket, in the place of the agent: 200 with the router's or network's id of the request."""

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
                    id_ = next(line.split(b': ')[1] for line in head.split(b'\r\n') if ID_HEADER.match(line))
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (len(id_), id_))


class Node:
    """A network node: its state path, its routers, the programs that serve them."""

    def __init__(self, state_path):
        self.state_path = state_path
        self.ids = []
        self._namespaces = {}
        self._interfaces = {}
        self._programs = []
        self._is_closed = threading.Event()
        self._supervisor = None
        for name in ('ns-metadata-proxy', 'external/pids'):
            (state_path / name).mkdir(parents=True)
        state_path.chmod(0o755)
        self._agent = Agent(str(state_path / 'metadata_proxy'))
        self._agent.start()

    def start(self):
        """Start keeper and shared proxy; returns when the proxy has a worker that is connected to the keeper."""
        self.start_missing()

    def start_missing(self):
        """Start keeper and shared proxy where they do not run; returns as ``start`` does."""
        proxy = [BIN / 'quantum-ns-metadata-proxy', '--shared', '--nodaemonize', '--state_path', self.state_path,
                 '--metadata_proxy_socket', self.state_path / 'metadata_proxy']  # fmt: skip
        keeper = [BIN / 'metadata-wsgi', 'keeper', '--state-path', self.state_path]
        former = self._programs or [None, None]
        self._programs = [
            program if program is not None and program.poll() is None else self._start(argv)
            for program, argv in zip(former, (keeper, proxy), strict=True)
        ]
        try:
            until(self._has_workers)
        except AssertionError:
            pytest.fail((self.state_path / 'log').read_text())

    def _start(self, argv):
        with open(self.state_path / 'log', 'a') as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    def _has_workers(self):
        try:
            with admin_client.connect(str(self.state_path)) as keeper:
                return bool(keeper.list('')[1])
        except NetnsError:
            return False

    def pids(self):
        """The pids of keeper and shared proxy."""
        return [program.pid for program in self._programs]

    def kill(self):
        """SIGKILL keeper and shared proxy with its workers, together."""
        self._kill(self._programs)

    def kill_keeper(self):
        """SIGKILL the keeper."""
        self._kill(self._programs[:1])

    def kill_proxy(self):
        """SIGKILL the shared proxy with its workers."""
        self._kill(self._programs[1:])

    def has_keeper(self):
        """Whether the keeper runs."""
        return bool(self._programs) and self._programs[0].poll() is None

    def has_proxy(self):
        """Whether the shared proxy runs."""
        return bool(self._programs) and self._programs[1].poll() is None

    def _kill(self, programs):
        for program in programs:
            with contextlib.suppress(OSError):
                for child in Path(f'/proc/{program.pid}/task/{program.pid}/children').read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            program.kill()
        for program in programs:
            program.wait()

    def close(self):
        self._is_closed.set()
        if self._supervisor:
            self._supervisor.join()
        self.kill()
        for proxy in haproxy.running(str(self.state_path)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(proxy.pid, signal.SIGKILL)
        for number, id_ in enumerate(self.ids):
            subprocess.run(['ip', 'netns', 'del', self._namespaces[id_]], check=False, capture_output=True)
            subprocess.run(['ip', 'rule', 'del', 'table', str(TABLE + number)], check=False, capture_output=True)
            # The kernel deletes a namespace some time later; the next test makes a link of this name.
            subprocess.run(['ip', 'link', 'del', self._interfaces[id_]], check=False, capture_output=True)
        self._agent.close()

    def supervise(self):
        """Start keeper and shared proxy again whenever they end, as systemd does (Restart=always)."""
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    def _supervise(self):
        while not self._is_closed.wait(0.1):
            self._programs = [
                program if program.poll() is None else self._start(program.args) for program in self._programs
            ]

    def add_router(self, kind='qrouter'):
        """A namespace as the L3 agent makes it, and the interface of an instance behind it; returns the id."""
        number, id_ = len(self.ids), f'{len(self.ids):08}-2222-4333-8444-555555555555'
        namespace, inside = f'{kind}-{id_}', f'seam{number}'
        run('ip', 'netns', 'add', namespace)
        run('ip', '-n', namespace, 'link', 'set', 'lo', 'up')
        run('ip', 'link', 'add', inside, 'type', 'veth', 'peer', 'name', 'qr-1', 'netns', namespace)
        self.add_instance(id_, namespace, inside)
        run('ip', '-n', namespace, 'addr', 'add', f'10.47.{number}.1/24', 'dev', 'qr-1')
        run('ip', '-n', namespace, 'link', 'set', 'qr-1', 'up')
        run('ip', 'netns', 'exec', namespace, 'iptables', '-t', 'nat', '-A', 'PREROUTING', '-d', '169.254.169.254/32',
            '-i', 'qr-+', '-p', 'tcp', '--dport', '80', '-j', 'REDIRECT', '--to-ports', '9697')  # fmt: skip
        return id_

    def add_instance(self, id_, namespace, interface):
        """Make ``interface`` that of an instance behind the router or network, whose gateway is 10.47.NUMBER.1."""
        number = len(self.ids)
        self.ids.append(id_)
        self._namespaces[id_] = namespace
        self._interfaces[id_] = interface
        run('ip', 'addr', 'add', f'10.47.{number}.2/24', 'dev', interface)
        run('ip', 'link', 'set', interface, 'up')
        table = ('table', TABLE + number)
        run('ip', 'route', 'add', '169.254.169.254', 'via', f'10.47.{number}.1', 'dev', interface, *table)
        run('ip', 'rule', 'add', 'from', f'10.47.{number}.2', *table)

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
        return run('ip', 'netns', 'exec', self._namespaces[id_], 'env', f'PROCESS_TAG=haproxy-{id_}', program, '-f',
                   self.configuration(id_), timeout=30)  # fmt: skip

    def pid(self, id_):
        return int((self.state_path / 'external' / 'pids' / f'{id_}.pid.haproxy').read_text())

    def get(self, id_, timeout_s=60.0):
        """Ask 169.254.169.254 as the instance behind the router; the body. Raises OSError."""
        address = (f'10.47.{self.ids.index(id_)}.2', 0)
        with socket.create_connection(('169.254.169.254', 80), timeout_s, address) as connection:
            connection.sendall(b'GET /x HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n')
            data = b''
            while chunk := connection.recv(65536):
                data += chunk
        assert data.startswith(b'HTTP/1.1 200'), (data, (self.state_path / 'log').read_text()[-2000:])
        return data.rpartition(b'\r\n\r\n')[2].decode()

    def serves(self, id_):
        """Whether an instance behind the router or network gets its id. False also while programs start."""
        try:
            return self.get(id_) == id_
        except (OSError, AssertionError):
            return False

    def is_refused(self, id_):
        """Whether no program listens for the router. Workers close their sockets shortly after the keeper."""
        address = (f'10.47.{self.ids.index(id_)}.2', 0)
        try:
            with socket.create_connection(('169.254.169.254', 80), 10.0, address):
                return False
        except ConnectionRefusedError:
            return True


def is_alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@contextlib.contextmanager
def running(directory):
    """A node whose programs run, under ``directory``, a ``tmp_path``: other users can pass through it."""
    node = Node(directory / 'neutron')
    try:
        node.start()
        yield node
    finally:
        node.close()
