# SPDX-License-Identifier: Apache-2.0
"""Measures what a service sees while it is down or fails, and when it returns, with many instances waiting.

    python -m tests.chaos.outage --seconds 60 --clients 100

For each of Nova, Neutron and Keystone, down (it refuses connections), hanging and responding 500: the instances' own
requests, the attempts that the agent made (connections, or requests), CPU time of the agent for each request of an
instance, and the requests of each of the first five seconds after the return. Needs root.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import isolation
from tests.chaos.host import AGENT, SHARED, Host
from tests.chaos.load import OK, RETRY_AFTER, Load
from tests.chaos.services import KEYSTONE, NEUTRON, NOVA, PORTS

PAUSE_S = 1.0
BASELINE_S = 10.0
RETURN_S = 5
KINDS = ('down', 'hanging', '500')
SERVICES = (NOVA, NEUTRON, KEYSTONE)
HEAD = (
    'Service', 'Fault', "Instances' requests/s before", 'Requests/s at the service before', 'CPU ms/request before',
    "Instances' requests during", '... failed', 'Attempts/s during', 'CPU ms/request during',
    "Instances' requests in s 1 to 5 after", 'Requests at the service in s 1 to 5 after',
)  # fmt: skip


@dataclass
class Probe:
    """Counters of one moment."""

    at_s: float
    connects: int
    requests: int
    cpu_s: float


def main(argv: Sequence[str]) -> int:
    """Measure and print the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=60.0, help='how long each fault lasts')
    parser.add_argument('--clients', type=int, default=100, help='instances')
    parser.add_argument('--service', action='append', choices=SERVICES)
    parser.add_argument('--kind', action='append', choices=KINDS)
    args = parser.parse_args(argv)
    isolation.enter('tests.chaos.outage', list(argv))
    directory = Path(tempfile.mkdtemp(prefix='metadata-wsgi-outage-'))
    directory.chmod(0o755)
    host = Host(directory, SHARED, clients_per_router=args.clients // 4)
    print(*(f'| {" | ".join(cells)} |' for cells in (HEAD, ['---'] * len(HEAD))), sep='\n', flush=True)
    try:
        host.start()
        for service in args.service or SERVICES:
            count = ('-p', 'tcp', '--syn', '--dport', str(PORTS[service]))
            subprocess.run(['iptables', '-I', 'OUTPUT', *count], check=True)
            load = host.load(PAUSE_S)
            for kind in args.kind or KINDS:
                print(f'| {" | ".join(_measure(host, load, service, kind, args.seconds))} |', flush=True)
            load.stop()
            subprocess.run(['iptables', '-D', 'OUTPUT', *count], check=True)
    finally:
        host.close()
    return 0


def _measure(host: Host, load: Load, service: str, kind: str, seconds: float) -> list[str]:
    host.services.forget_times()
    load.take()
    before = [_probe(host, service)]
    time.sleep(BASELINE_S)
    before.append(_probe(host, service))
    asked_before = len(load.take())
    if service == KEYSTONE:
        host.services.revoke_tokens()
    if kind == '500':
        host.services.force(service, 500, 'injected')
    else:
        host.services.set_fault(service, kind)
    during = [_probe(host, service)]
    time.sleep(seconds)
    during.append(_probe(host, service))
    exchanges = load.take()
    asked_during = len(exchanges)
    failed = sum(one.outcome not in (OK, RETRY_AFTER) for one in exchanges)
    returned_s = time.monotonic()
    if kind == '500':
        host.services.force(service, 0, '')
    else:
        host.services.set_fault(service, 'none')
    time.sleep(RETURN_S + 1)
    requested, _ = host.services.times(service)
    seen = [sum(second <= at_s - returned_s < second + 1 for at_s in requested) for second in range(RETURN_S)]
    after = load.take()
    asked = [sum(second <= one.ended_s - returned_s < second + 1 for one in after) for second in range(RETURN_S)]
    host.wait_until(host.serves_all, 'an instance gets no metadata')
    return [
        service, kind, f'{asked_before / BASELINE_S:.0f}', f'{_per_s(before, "requests"):.0f}',
        f'{_cpu_ms(before, asked_before):.1f}', str(asked_during), str(failed),
        f'{max(_per_s(during, "requests"), _per_s(during, "connects")):.1f}', f'{_cpu_ms(during, asked_during):.1f}',
        ', '.join(map(str, asked)), ', '.join(map(str, seen)),
    ]  # fmt: skip


def _probe(host: Host, service: str) -> Probe:
    requested, _ = host.services.times(service)
    rules = subprocess.run(['iptables', '-vxnL', 'OUTPUT'], check=True, capture_output=True, text=True).stdout
    counted = next(line for line in rules.splitlines() if f'dpt:{PORTS[service]}' in line)
    match = re.match(r' *(\d+)', counted)
    assert match
    unit = host.units[AGENT]
    return Probe(time.monotonic(), int(match[1]), len(requested), sum(map(_cpu_s, (unit.pid, *unit.children()))))


def _cpu_s(pid: int) -> float:
    """User and system time."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _per_s(probes: Sequence[Probe], name: str) -> float:
    first, last = probes
    return float((getattr(last, name) - getattr(first, name)) / (last.at_s - first.at_s))


def _cpu_ms(probes: Sequence[Probe], requests: int) -> float:
    first, last = probes
    return 1000 * (last.cpu_s - first.cpu_s) / max(1, requests)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
