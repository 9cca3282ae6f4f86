# SPDX-License-Identifier: Apache-2.0
"""The testbed of a measurement: a host, routers and guests in network namespaces, and a service in Nova's place.

The first routers have guests: router number N serves 10.1.N.0/24, and the interface gN of the guests' namespace
leads to it. The other routers have only a loopback interface. No namespace is connected to the machine's network.

A peer is a directory with three programs; ``peers/README.md`` describes their interface.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import machine

from metadata_wsgi.netns import namespaces

HERE = Path(__file__).resolve().parent
PORT = 9697
METADATA = '169.254.169.254'
URL = f'http://{METADATA}/openstack/latest/meta_data.json'
NOVA = ('127.0.0.1', 8775)
ANSWER = {
    'uuid': '0' * 8 + '-0000-4000-8000-' + '0' * 12,
    'name': 'a guest of the bench',
    'hostname': 'bench.novalocal',
    'availability_zone': 'nova',
    'project_id': '0' * 32,
    'public_keys': {'bench': 'ssh-ed25519 ' + 'A' * 360 + ' bench'},
}


class TestbedError(Exception):
    """A peer or the testbed failed."""


class Testbed:
    """A context manager: makes the namespaces, and at the end removes them and stops their processes."""

    def __init__(self, peer: str, *, routers: int = 1, with_guests: int = 1, guests_each: int = 10) -> None:
        self.peer = peer
        self.directory = HERE / 'peers' / peer
        tag = f'{os.getpid()}-{peer.replace("_", "-")}'
        self.host, self.guests = f'bench-host-{tag}', f'bench-guests-{tag}'
        self.routers = [str(uuid.uuid4()) for _ in range(routers)]
        self.with_guests = with_guests
        self.guests_each = guests_each
        self._made: list[str] = []
        self._nova: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Testbed:
        self.state = Path(tempfile.mkdtemp(prefix='metadata-bench-'))
        self.state.chmod(0o755)
        for name in ('pids', 'conf'):
            (self.state / name).mkdir()
        self.socket = str(self.state / 'metadata_proxy')
        (self.state / 'inventory.json').write_text(json.dumps(self._inventory()))
        (self.state / 'answer').write_text(json.dumps(ANSWER))
        self.env = {
            **os.environ,
            'BENCH_STATE': str(self.state),
            'BENCH_DIR': str(HERE),
            'BENCH_HOSTNS': self.host,
            'BENCH_UPSTREAM': '{}:{}'.format(*NOVA),
            'BENCH_SECRET': 'of the bench',
            'BENCH_PORTS': str(self.state / 'inventory.json'),
            'BENCH_ROUTERS': str(len(self.routers)),
        }
        try:
            self._build()
            self._start_nova()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._nova:
            self._nova.terminate()
            self._nova.wait()
        self._ip(f'netns del {name}' for name in reversed(self._made))
        shutil.rmtree(self.state, ignore_errors=True)

    # -- the measured peer

    def start_agent(self) -> None:
        """Start the peer's agent. Returns when it accepts connections."""
        self._run(['nsenter', f'--net={namespaces.path(self.host)}', str(self.directory / 'start_agent'), self.socket])

    def attach(self, routers: Iterable[str]) -> None:
        """Attach the routers. Returns when the port in each namespace accepts connections."""
        waiting = list(routers)
        calls = [[namespace(router), router, str(PORT), self.socket] for router in waiting]
        if (self.directory / 'start_ns_proxies').exists():
            lines = ''.join(' '.join(call) + '\n' for call in calls)
            (self.state / 'routers').write_text(lines)
            self._run([str(self.directory / 'start_ns_proxies')], stdin=self.state / 'routers')
        else:
            for call in calls:
                self._run([str(self.directory / 'start_ns_proxy'), *call])
        end = time.monotonic() + 120
        while waiting := [router for router in waiting if not namespaces.run_in(namespace(router), _accepts)]:
            if time.monotonic() > end:
                raise TestbedError(f'{self.peer}: nothing listens in {len(waiting)} namespaces')

    def wait_until_responding(self) -> None:
        """Wait until a guest of each router that has guests gets 200."""
        end = time.monotonic() + 30
        for number in range(self.with_guests):
            argv = ['curl', '-s', '-o', '/dev/null', '-m', '10', '-w', '%{http_code}', '--interface', f'g{number}', URL]
            while (status := self._run([*self.in_guests(), *argv], check=False)) != '200':
                if time.monotonic() > end:
                    raise TestbedError(f'{self.peer}: router {number} responds {status}; {self._logs()}')
                time.sleep(0.2)

    def pids(self) -> list[int]:
        """The peer's processes."""
        words = [path.read_text().split() for path in sorted((self.state / 'pids').glob('*.pid'))]
        return machine.family(int(word) for pids in words for word in pids)

    def nova_pids(self) -> list[int]:
        """The processes of the service in Nova's place."""
        return machine.family([self._nova.pid]) if self._nova else []

    def in_guests(self) -> list[str]:
        """Command prefix to run a program in the guests' namespace."""
        return ['ip', 'netns', 'exec', self.guests]

    # -- its surroundings

    def _inventory(self) -> dict[str, object]:
        routers, ports = [], []
        for number, router in enumerate(self.routers):
            network = str(uuid.uuid4())
            routers.append({'id': router, 'netns': namespace(router), 'networks': [network]})
            ports += [
                {
                    'network_id': network,
                    'ip': f'10.1.{number}.{guest + 2}',
                    'mac': f'fa:16:3e:00:{number:02x}:{guest:02x}',
                    'instance_id': str(uuid.uuid4()),
                    'project_id': uuid.uuid4().hex,
                }
                for guest in range(self.guests_each if number < self.with_guests else 0)
            ]
        return {'routers': routers, 'ports': ports}

    def _build(self) -> None:
        names = [self.host, self.guests, *map(namespace, self.routers)]
        self._made = names
        self._ip(f'netns add {name}' for name in names)
        for name in names:
            namespaces.run_in(name, _loopback_up)
        inside = []
        for number, router in enumerate(self.routers[: self.with_guests]):
            there = namespace(router)
            self._ip([f'link add g{number} netns {self.guests} type veth peer name qr-bench netns {there}'])
            self._ip([f'addr add 10.1.{number}.1/24 dev qr-bench', 'link set qr-bench up'], there)
            inside += [f'addr add 10.1.{number}.{guest + 2}/24 dev g{number}' for guest in range(self.guests_each)]
            inside += [f'link set g{number} up']
            inside += [f'route add {METADATA} via 10.1.{number}.1 dev g{number} metric {number + 1}']
            redirect = f'-A PREROUTING -d {METADATA}/32 -i qr-+ -p tcp --dport 80 -j REDIRECT --to-ports {PORT}'
            self._run(['ip', 'netns', 'exec', there, 'iptables', '-w', '-t', 'nat', *redirect.split()])
        self._ip(inside, self.guests)
        for name in (self.guests, self.host):
            namespaces.run_in(name, _many_ports)

    def _start_nova(self) -> None:
        argv = ['nsenter', f'--net={namespaces.path(self.host)}', 'haproxy', '-db', '-f', str(HERE / 'nova.cfg')]
        with open(self.state / 'nova.out', 'w') as out:
            self._nova = subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        end = time.monotonic() + 10
        while not namespaces.run_in(self.host, lambda: _accepts(NOVA[1])):
            if time.monotonic() > end:
                raise TestbedError(
                    f"the service in Nova's place did not start: {(self.state / 'nova.out').read_text()}"
                )
            time.sleep(0.05)

    def _stop(self) -> None:
        pids = self.pids()
        self._run([str(self.directory / 'stop')], check=False)
        end = time.monotonic() + 5
        while (left := [pid for pid in pids if machine.family([pid])]) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _run(self, argv: list[str], *, check: bool = True, stdin: Path = Path(os.devnull)) -> str:
        # stderr goes to a file: subprocess.run would wait for a daemon that inherited a pipe.
        with open(self.state / 'errors', 'w+') as errors, open(stdin) as input_:
            done = subprocess.run(
                argv, env=self.env, stdin=input_, stdout=subprocess.PIPE if not check else errors,
                stderr=errors, text=True, check=False,
            )  # fmt: skip
            if check and done.returncode:
                errors.seek(0)
                raise TestbedError(f'{" ".join(argv)}: {errors.read()}')
        return done.stdout or ''

    def _ip(self, lines: Iterable[str], inside: str | None = None) -> None:
        where = ['-n', inside] if inside else []
        done = subprocess.run(
            ['ip', *where, '-force', '-batch', '-'], input='\n'.join(lines) + '\n', capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise TestbedError(f'ip: {done.stderr}')

    def _logs(self) -> str:
        logs = [path for path in self.state.rglob('*') if path.suffix in ('.log', '.out')]
        return '\n'.join(f'{path}: {path.read_text()[-600:]}' for path in logs)


def namespace(router: str) -> str:
    """The name of a router's namespace."""
    return f'qrouter-{router}'


def _loopback_up() -> None:
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)


def _many_ports() -> None:
    Path('/proc/sys/net/ipv4/ip_local_port_range').write_text('9800 65535')
    Path('/proc/sys/net/ipv4/tcp_tw_reuse').write_text('1')


def _accepts(port: int = PORT) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(('127.0.0.1', port)) == 0
