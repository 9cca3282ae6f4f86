#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures a boot storm with lookups in a real Keystone and Neutron: queries, seconds, CPU time of Neutron.

    python benchmarks/neutron_storm.py [--requests N] [--runs N] [--cache none,lookup_cache] [--json FILE]

500 instances behind 50 routers, each with one network, boot at once. Each sends the first ``--requests`` requests of a
boot through the agent's unix socket, with the headers that a namespace proxy sets. A service in Nova's place answers
each signed request. Needs haproxy, and the services that ``tests/openstack`` installs. Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import machine  # noqa: E402
import storm  # noqa: E402

from tests.openstack.deployment import running  # noqa: E402
from tests.openstack.seed import Admin  # noqa: E402
from tests.openstack.services import REGION, Services  # noqa: E402

ROUTERS, GUESTS_PER_ROUTER = 50, 10
PREFIX = 'storm-'
NOVA = ('127.0.0.1', 18775)
AGENT = 'metadata_wsgi'
"""How the User-Agent of the agent's requests begins."""
CACHES = {'none': '', 'lookup_cache': 'lookup_cache'}
WITHIN_S = 300.0


class Guest(storm.Guest):
    """An instance behind a namespace proxy: its requests come through the agent's socket."""

    path = ''

    def connect(self) -> socket.socket:
        """Open the connection of the next request to the agent."""
        self.began = time.monotonic()
        self.received = b''
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)
        self.sock.setblocking(False)
        return self.sock

    def request(self) -> bytes:
        """The bytes of the current request as a namespace proxy sends them."""
        identity = f'X-Forwarded-For: {self.address}\r\nX-Quantum-Router-ID: {self.device}\r\n'
        return super().request().replace(b'Connection:', identity.encode() + b'Connection:')


def make_ports(services: Services) -> list[str]:
    """Make the routers, networks and ports, unless an earlier run has made them. Returns the ids of the routers."""
    admin = Admin(services)
    try:
        routers = {
            router['name']: router['id']
            for router in admin.neutron('GET', 'routers?fields=id&fields=name')['routers']
            if router['name'].startswith(PREFIX)
        }
        project = admin.keystone('GET', 'projects?name=tenant-a')['projects'][0]['id']
        for number in range(ROUTERS):
            name = f'{PREFIX}{number}'
            if name in routers:
                continue
            network = admin.make('network', name=name, project_id=project)['id']
            subnet = admin.make(
                'subnet', network_id=network, project_id=project, ip_version=4, cidr='10.1.1.0/24', enable_dhcp=False
            )['id']
            admin.make_all('port', (
                {'project_id': project, 'network_id': network, 'device_id': f'{name}-{host}',
                 'device_owner': 'compute:nova', 'fixed_ips': [{'subnet_id': subnet, 'ip_address': f'10.1.1.{host}'}]}
                for host in range(2, 2 + GUESTS_PER_ROUTER)
            ))  # fmt: skip
            router = admin.make('router', name=name, project_id=project)['id']
            admin.neutron('PUT', f'routers/{router}/add_router_interface', {'subnet_id': subnet})
            routers[name] = router
        return sorted(routers.values())
    finally:
        admin.close()


@contextmanager
def nova(state: Path) -> Iterator[None]:
    """Run a service in Nova's place."""
    (state / 'answer').write_text(json.dumps({'name': 'a guest of the benchmark'}))
    environment = {**os.environ, 'BENCH_UPSTREAM': '{}:{}'.format(*NOVA), 'BENCH_STATE': str(state)}
    process = subprocess.Popen(['haproxy', '-q', '-f', str(HERE / 'nova.cfg')], env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def agent(services: Services, state: Path, cache: str) -> Iterator[str]:
    """Run the agent with one worker. Yields the path of its socket."""
    paste = (HERE.parent / 'etc' / 'api-paste.ini').read_text()
    shipped = 'deadline header_source instance'
    assert shipped in paste, 'the shipped pipeline has changed'
    if cache:
        paste = paste.replace(shipped, f'deadline header_source {cache} instance')
        if f'[filter:{cache}]' not in paste:
            paste += f'\n[filter:{cache}]\nuse = egg:metadata_wsgi#{cache}\n'
    (state / 'paste.ini').write_text(paste)
    (state / 'agent.ini').write_text(f"""[DEFAULT]
state_path = {state}
metadata_paste_config = {state}/paste.ini
auth_url = {services.keystone}
auth_region = {REGION}
admin_user = service
admin_password = password of service
admin_tenant_name = service
nova_metadata_host = {NOVA[0]}
nova_metadata_port = {NOVA[1]}
metadata_proxy_shared_secret = of the benchmark
metadata_workers = 1
metadata_peer_users = root
""")
    path = state / 'metadata_proxy'
    program = Path(sys.executable).with_name('quantum-metadata-agent')
    with (state / 'agent.log').open('ab') as log:
        process = subprocess.Popen(
            [program, '--config-file', state / 'agent.ini'], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        end = time.monotonic() + 60
        while not path.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit((state / 'agent.log').read_text()[-3000:])
            time.sleep(0.05)
        yield str(path)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        path.unlink(missing_ok=True)


def measure(services: Services, state: Path, routers: list[str], cache: str) -> dict[str, object]:
    """Run one storm and return its result."""
    neutron = machine.family([services._running['neutron'].pid])
    with agent(services, state, cache) as path:
        Guest.path = path
        Storm = storm.Storm([  # noqa: N806 (one object)
            Guest(router, f'10.1.1.{host}') for host in range(2, 2 + GUESTS_PER_ROUTER) for router in routers
        ])  # fmt: skip
        queries, cpu_s = len(services.requests_from(AGENT, 'neutron')), machine.cpu_s(neutron)
        seconds = Storm.run(WITHIN_S)
    time.sleep(1)  # the access log is written after the response
    queries = len(services.requests_from(AGENT, 'neutron')) - queries
    requests = len(routers) * GUESTS_PER_ROUTER * len(storm.PATHS)
    took_ms = sorted(1000 * duration for duration in Storm.durations_s) or [0.0]
    return {
        'cache': cache or 'none',
        'requests': requests,
        'failed': requests - Storm.outcomes['200'],
        'queries': queries,
        'seconds': round(seconds, 2),
        'neutron_cpu_s': round(machine.cpu_s(neutron) - cpu_s, 2),
        'p50_ms': round(took_ms[len(took_ms) // 2]),
        'p99_ms': round(took_ms[len(took_ms) * 99 // 100]),
    }


def main() -> None:
    """Print a line of JSON for each storm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--requests', type=int, default=5, help='requests of each instance (1 to 28)')
    parser.add_argument('--runs', type=int, default=1)
    parser.add_argument('--cache', default=','.join(CACHES), help='comma-separated: none, lookup_cache')
    options = parser.parse_args()
    # A cloud only for this benchmark: hundreds of ports would slow down the tests, which use another cloud.
    os.environ.setdefault('METADATA_WSGI_OPENSTACK_PORT', '18600')
    storm.PATHS = storm.PATHS[: options.requests]
    with tempfile.TemporaryDirectory(prefix='neutron-storm-') as name, running() as openstack:
        state = Path(name)
        state.chmod(0o755)
        routers = make_ports(openstack.services)
        with nova(state):
            for _ in range(options.runs):
                for cache in options.cache.split(','):
                    print(json.dumps(measure(openstack.services, state, routers, CACHES[cache])), flush=True)


if __name__ == '__main__':
    main()
