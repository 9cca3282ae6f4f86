# SPDX-License-Identifier: Apache-2.0
"""A network node: routers with instances, the programs of one mode under supervision, and the services they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from metadata_wsgi import limits
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.netns import namespaces
from tests.chaos import topology
from tests.chaos.installation import Installation
from tests.chaos.load import OK, Load, send
from tests.chaos.services import CREDENTIALS, KEYSTONE, MEMCACHED, NOVA, PORTS, ServicesClient
from tests.chaos.topology import SERVICES, SERVICES_NAMESPACE, Client, Router
from tests.chaos.units import NotifySocket, Supervisor, Unit

BIN = Path(sys.prefix, 'bin')
SHARED, ONE_HOP, PROCESS = 'shared', 'one_hop', 'process'
MODES = (SHARED, ONE_HOP, PROCESS)
AGENT, PROXY, KEEPER, WATCH = 'agent', 'proxy', 'keeper', 'watch'

SECRET = 'a secret of tests'
START_TIMEOUT_S = 150.0
STATE_BYTES = 4 << 20
"""Size of the file system with the state path and the logs."""
CACHED = ('header_source instance', 'header_source lookup_cache instance')
CACHED_ONE_HOP = ('socket_source instance', 'socket_source lookup_cache instance')
SHIPPED_PASTE = Path(__file__).parents[2] / 'etc' / 'api-paste.ini'


class Host:
    """Started by ``start``; ``close`` removes everything. ``directory`` is empty and open to all users.

    With ``cached`` the pipelines have ``lookup_cache``, shared in memcached. With ``fake_clock`` the agent has the wall
    clock that ``set_clock`` sets. The programs are those of ``installation``, or else of the Python that runs this.

    ``deadline_s`` is that of a request. The namespace proxies of mode ``process`` have the default one.
    """

    def __init__(
        self, directory: Path, mode: str, *, routers: int = 4, clients_per_router: int = 5, cached: bool = False,
        fake_clock: bool = False, options: Mapping[str, object] | None = None, installation: Installation | None = None,
        deadline_s: float = limits.REQUEST_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self.mode = mode
        self.cached = cached
        self.directory = directory
        self.state_path = directory / 'state'
        self.agent_log = directory / 'log' / 'agent.log'
        self.log_dir = directory / 'output'
        self.conf_file = directory / 'metadata_agent.ini'
        self.routers = topology.make_routers(routers, clients_per_router)
        self.clients: list[Client] = [client for router in self.routers for client in router.clients]
        self.supervisor = Supervisor()
        self._fake_clock = fake_clock
        self._configured_deadline_s = deadline_s
        self._installation = installation
        self._bin = installation.bin if installation else BIN
        self.options: dict[str, object] = dict(options or {})
        self._memcached: subprocess.Popen[bytes] | None = None

    @property
    def units(self) -> Mapping[str, Unit]:
        """The programs by name."""
        return self.supervisor.units

    @property
    def deadline_s(self) -> float:
        """When a request has its response, at the latest a 503."""
        return limits.REQUEST_TIMEOUT_S if self.mode == PROCESS else self._configured_deadline_s

    @property
    def _timeout_option(self) -> str:
        return 'answer_within' if self._installation else 'request_timeout'

    @property
    def installation(self) -> Installation:
        """Where the programs are, if not those of the Python that runs this."""
        assert self._installation
        return self._installation

    @property
    def front(self) -> str:
        """The program that accepts the connections of instances; '' in mode process, where there are many."""
        return {SHARED: PROXY, ONE_HOP: AGENT, PROCESS: ''}[self.mode]

    @property
    def file_systems(self) -> tuple[Path, Path]:
        """The state path and the directory of the agent's log."""
        return self.state_path, self.agent_log.parent

    def start(self) -> None:
        """Make the namespaces, start everything, and wait until each instance gets metadata."""
        self.log_dir.mkdir()
        # File systems of their own, which a fault can fill or make read-only.
        for made in self.file_systems:
            made.mkdir()
            size = f'size={STATE_BYTES},mode=1775'
            subprocess.run(['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(made)], check=True)
        # As the units and the agents of Quantum do.
        (self.state_path / 'external' / 'pids').mkdir(parents=True)
        topology.make_services_link()
        for router in self.routers:
            router.make()
        self._start_services()
        self.configure()
        self._start_programs()
        self.wait_until(lambda: all(map(self.answers, self.clients)), 'an instance gets no metadata')

    def _start_services(self) -> None:
        self._memcached = namespaces.run_in(
            SERVICES_NAMESPACE,
            lambda: subprocess.Popen(
                ['memcached', '-u', 'nobody', '-l', '127.0.0.1', '-p', str(PORTS[MEMCACHED]), '-m', '16']
            ),
        )
        self.services = ServicesClient(SERVICES_NAMESPACE, SERVICES)
        self.services.set_ports([port for router in self.routers for port in router.ports()])
        self.services.set_instances({client.instance_id: client.project_id for client in self.clients})
        self.services.set_secret(SECRET)

    def configure(self, **more: object) -> None:
        """Write the configuration file; ``more`` are further options, for this time."""
        options: dict[str, object] = {
            'state_path': self.state_path,
            'directory': 'neutron',
            'auth_url': f'http://{SERVICES}:{PORTS[KEYSTONE]}/v3',
            **CREDENTIALS,
            'nova_metadata_host': SERVICES,
            'nova_metadata_port': PORTS[NOVA],
            'metadata_proxy_shared_secret': SECRET,
            'metadata_workers': 2,
            self._timeout_option: self._configured_deadline_s,
            'metadata_one_hop': self.mode == ONE_HOP,
            'metadata_peer_users': 'nobody',
            'check_services_at_start': False,
            'log_file': self.agent_log,
        }
        if self.cached:
            paste = self.directory / 'api-paste.ini'
            text = SHIPPED_PASTE.read_text()
            for without, with_cache in (CACHED, CACHED_ONE_HOP):
                text = text.replace(without, with_cache)
            paste.write_text(text)
            options |= {'metadata_paste_config': paste, 'cache_url': f'memcached://{SERVICES}:{PORTS[MEMCACHED]}'}
        if self._installation:
            # Former names, which version 1.0 knows too.
            options |= {'directory': 'quantum', 'metadata_look_at_start': False}
            del options['check_services_at_start']
        lines = [f'{name} = {value}' for name, value in {**options, **self.options, **more}.items()]
        self.conf_file.touch(mode=0o600)
        self.conf_file.write_text('\n'.join(['[DEFAULT]', *lines, '']))

    def _start_programs(self) -> None:
        wsgi, conf = str(self._bin / 'metadata-wsgi'), f'--config-file={self.conf_file}'
        if self.mode != PROCESS:
            self._add(KEEPER, wsgi, 'keeper', conf, max_stored=16384)
            self.wait_until((self.state_path / 'listeners').exists, 'the keeper does not listen')
        if self.mode == SHARED:
            self._add(PROXY, str(self._bin / 'quantum-ns-metadata-proxy'), '--shared', '--nodaemonize', '--verbose',
                      f'--state_path={self.state_path}', f'--{self._timeout_option}={self.deadline_s}')  # fmt: skip
        self._add(AGENT, str(self._bin / 'quantum-metadata-agent'), conf, environ=self._clock_environ(), max_stored=1)
        # Not with two versions: a keeper of version 1.0 does not list its workers, and there are no holders.
        if self.mode != PROCESS and not self._installation:
            self.wait_until(lambda: self.mode in self.workers_in_keeper(), 'no worker is connected to the keeper')
        if self.mode == SHARED and not self._installation:
            self.start_as_l3_agent(self.routers[0])
        self._add(WATCH, wsgi, 'watch', conf, '--again=3', '--', f'--mode={self.mode}')

    def _clock_environ(self) -> Mapping[str, str]:
        if not self._fake_clock:
            return {}
        self.set_clock('+0')
        return {
            'LD_PRELOAD': faketime_library(), 'FAKETIME_TIMESTAMP_FILE': str(self.directory / 'clock'),
            'FAKETIME_CACHE_DURATION': '1', 'FAKETIME_DONT_FAKE_MONOTONIC': '1', 'DONT_FAKE_MONOTONIC': '1',
        }  # fmt: skip

    def set_clock(self, offset: str) -> None:
        """Move the wall clock of the agent, for example by ``+1d``; it notices within a second."""
        (self.directory / 'clock').write_text(offset)

    def _add(self, name: str, *argv: str, environ: Mapping[str, str] | None = None, max_stored: int = 0) -> None:
        """Start a unit. ``max_stored`` is ``FileDescriptorStoreMax=`` of its file in etc/systemd."""
        notify = NotifySocket(self.directory / f'notify-{name}', max_stored=max_stored)
        environ = {**(self._installation.environ if self._installation else {}), **(environ or {})}
        self.supervisor.add(Unit(name, argv, self.log_dir / f'{name}.log', notify=notify, environ=environ))

    def workers_in_keeper(self) -> Mapping[str, int]:
        """How many workers of each mode are connected to the keeper."""
        try:
            with admin_client.connect(str(self.state_path)) as keeper:
                return keeper.list('')[1]
        except NetnsError:
            return {}

    def start_as_l3_agent(self, router: Router) -> None:
        """Start the namespace proxy of a router as an L3 agent does: it leaves a holder."""
        argv = ['ip', 'netns', 'exec', router.namespace, str(self._bin / 'quantum-ns-metadata-proxy'),
                f'--router_id={router.id}', f'--pid_file={self.pid_file(router)}', f'--state_path={self.state_path}',
                '--metadata_port=9697', f'--log-dir={self.log_dir}']  # fmt: skip
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def pid_file(self, router: Router) -> Path:
        """Where the pid of a router's holder or namespace proxy is."""
        return self.state_path / 'external' / 'pids' / f'{router.id}.pid'

    def pid_of(self, router: Router) -> int:
        """The holder or namespace proxy of a router; 0 if there is none."""
        try:
            pid = int(self.pid_file(router).read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return 0
        return pid

    def serves_all(self) -> bool:
        """Whether each instance gets its own metadata now."""
        return all(self.serves(client) for client in self.clients)

    def serves(self, client: Client) -> bool:
        """Whether this instance gets its own metadata now."""
        got = namespaces.run_in(client.namespace, lambda: send(client, '/openstack'))
        return got.outcome == OK and got.instance_id == client.instance_id

    def answers(self, client: Client) -> bool:
        """Whether this instance gets some instance's metadata now."""
        return namespaces.run_in(client.namespace, lambda: send(client, '/openstack')).outcome == OK

    def load(self, pause_s: float) -> Load:
        """Start the clients."""
        return Load(self.clients, pause_s=pause_s, timeout_s=self._configured_deadline_s + 1.0)

    def wait_until(self, condition: Callable[[], bool], failure: str, within_s: float = START_TIMEOUT_S) -> None:
        """Wait for a condition; AssertionError with the ends of the logs if it does not come true."""
        give_up_at_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < give_up_at_s, f'{failure} within {within_s:g} s\n{self.log_text()}'
            time.sleep(0.05)

    def log_text(self, max_chars: int = 3000) -> str:
        """The end of each log."""
        logs = sorted([*self.log_dir.glob('*.log'), *self.agent_log.parent.glob('*.log')])
        return '\n'.join(f'--- {log.name}\n{log.read_text(errors="replace")[-max_chars:]}' for log in logs)

    def close(self) -> None:
        """End everything that was started and remove the namespaces."""
        self.supervisor.close()
        if hasattr(self, 'services'):
            self.services.close()
        if self._memcached:
            self._memcached.kill()
            self._memcached.wait()
        for router in self.routers:
            if pid := self.pid_of(router):
                os.kill(pid, 9)
        for made in self.file_systems:
            if made.is_mount():
                subprocess.run(['umount', '-l', str(made)], check=True)
        topology.remove(self.routers)
        shutil.rmtree(self.directory, ignore_errors=True)


def faketime_library() -> str:
    """Debian's libfaketime; '' if it is not installed."""
    return next((str(path) for path in Path('/usr/lib').glob('*/faketime/libfaketime.so.1')), '')
