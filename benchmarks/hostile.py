# SPDX-License-Identifier: Apache-2.0
"""Sends the wire cases of ``tests/wire`` to Neutron's path: haproxy with Neutron's configuration and Neutron's agent.

``hostile.py PYTHON`` prints each case whose outcome differs from the one that ``tests/wire`` requires, and a summary.
PYTHON is an interpreter that has neutron. Needs haproxy but not root. The recording Nova is that of the tests.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.cloud import NETWORK, OTHER_ROUTER, ROUTER, SECRET
from tests.neutron_haproxy import DEFAULTS
from tests.rawserver import RawServer, always_responds_with
from tests.wire.cases import REFUSED, REFUSED_STATUSES, cases
from tests.wire.conftest import NOVA_RESPONSE, SENDER_HEADERS, ReceivedRequest, Servers

HAPROXY = f"""
global
    maxconn 1024
    nbthread 2
{DEFAULTS}
listen listener
    bind 127.0.0.1:{{port}}
    server metadata {{socket}}
    http-request del-header X-Neutron-Network-ID
    http-request set-header X-Neutron-Router-ID {{router}}
"""

AGENT = """
[DEFAULT]
transport_url = fake:///
state_path = {directory}
metadata_proxy_socket = {socket}
metadata_proxy_shared_secret = {secret}
nova_metadata_host = 127.0.0.1
nova_metadata_port = {nova}
[agent]
report_interval = 0
[oslo_concurrency]
lock_path = {directory}
"""

NOVAS, ROUTERS = 'compute:nova', 'network:router_interface'


def port(network: str, owner: str, device: str, project: str = '', address: str = '') -> dict[str, Any]:
    """A port as neutron-server returns it."""
    return {
        'network_id': network,
        'device_owner': owner,
        'device_id': device,
        'project_id': project,
        'fixed_ips': [{'ip_address': address}] if address else [],
    }


PORTS = [
    port('network-a', ROUTERS, ROUTER),
    port('network-b', ROUTERS, OTHER_ROUTER),
    port('network-a', NOVAS, 'instance-a', 'project-a', '127.0.0.1'),
    port('network-b', NOVAS, 'instance-b', 'project-b', '127.0.0.1'),
    port('network-b', NOVAS, 'instance-b', 'project-b', '10.1.1.2'),
    port(NETWORK, NOVAS, 'instance-c', 'project-c', '10.1.1.2'),
]


@contextlib.contextmanager
def peer(python: str):
    """Start haproxy, Neutron's agent and the recording Nova. Yields Servers with the address of haproxy."""
    nova = RawServer(always_responds_with(NOVA_RESPONSE))
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as ends:
        directory = Path(name)
        path = directory / 'agent.socket'
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            at = probe.getsockname()[1]
        (directory / 'ports.json').write_text(json.dumps(PORTS))
        (directory / 'agent.ini').write_text(
            AGENT.format(directory=directory, socket=path, secret=SECRET, nova=nova.port)
        )
        (directory / 'haproxy.cfg').write_text(HAPROXY.format(port=at, socket=path, router=ROUTER))
        agent = Path(__file__).parent.parent / 'tests' / 'neutron_interop' / 'neutron_agent.py'
        log = ends.enter_context((directory / 'log').open('w'))
        for argv in (
            [python, str(agent), str(directory / 'ports.json'), '--config-file', str(directory / 'agent.ini')],
            ['haproxy', '-db', '-f', str(directory / 'haproxy.cfg')],
        ):
            started = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, cwd=directory)
            ends.callback(started.wait)
            ends.callback(os.killpg, started.pid, 15)
        hops = Servers({'proxy': ('127.0.0.1', at)}, nova)
        give_up_at = time.monotonic() + 120
        while not hops.responds('proxy'):
            if time.monotonic() > give_up_at:
                sys.exit((directory / 'log').read_text())
            time.sleep(0.5)
        hops.received()
        yield hops
    nova.close()


def deviations(status: int | None, received: list[ReceivedRequest], expect: str, max_requests: int) -> str:
    """The differences between the outcome of a case and the required outcome; '' if there are none."""
    found = []
    for one in received:
        names = dict(one.headers)
        wrong = [name for name, value in SENDER_HEADERS.items() if names.get(name, '').removeprefix('::ffff:') != value]
        if wrong:
            found.append(f'Nova received {", ".join(f"{name}: {names.get(name)}" for name in wrong)}')
        if int(names.get('content-length', 0)) != len(one.body):
            found.append('Nova received a body with a wrong Content-Length')
    if any('smuggled' in one.target for one in received):
        found.append('Nova received the smuggled request')
    if len(received) > max_requests:
        found.append(f'Nova received {len(received)} requests instead of at most {max_requests}')
    if expect == REFUSED and status not in (None, *REFUSED_STATUSES):
        found.append(f'responded {status}')
    if expect == '200' and status != 200:
        found.append(f'responded {status or "nothing"} instead of 200')
    if expect == '200' and status == 200 and len(received) < max_requests:
        found.append(f'Nova received {len(received)} requests of {max_requests}')
    return '; '.join(found)


def main(python: str) -> None:
    """Send all cases and print the deviations."""
    counts: collections.Counter[str] = collections.Counter()
    with peer(python) as hops:
        for case in cases():
            expect, max_requests = case.expected('proxy')
            begun = time.monotonic()
            try:
                status, _ = hops.send('proxy', case.data('proxy'), timeout_s=10.0)
            except TimeoutError:
                status = None
            # haproxy may respond before the agent has received the whole request.
            time.sleep(0.2)
            verdict = deviations(status, hops.received(), expect, max_requests)
            if time.monotonic() - begun > 8:
                verdict = '; '.join(filter(None, [verdict, 'no response within 10 s']))
            counts[verdict] += 1
            if verdict:
                print(f'{case.name}: {verdict}', flush=True)
    print(f'{sum(counts.values())} cases, {counts[""]} without deviation')
    for verdict, count in counts.most_common():
        if verdict:
            print(f'{count:4} {verdict}')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
