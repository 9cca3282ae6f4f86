# SPDX-License-Identifier: Apache-2.0
"""Calculates from measured costs what one large node and 100 nodes need. Measures nothing.

    python benchmarks/scale.py benchmarks/results/FILE.jsonl...

Reads results of ``run.py``, and writes doc/scale.md with its plots. The costs of a lookup are those of
``neutron_storm.py`` (``LOOKUPS``). The model assumes that processors are the limit, that work divides evenly among the
agent's workers, and that every client waits for its response before it sends the next request.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plot
import report
import storm

PATHS = ('neutron', 'two_hop', 'one_hop', 'one_hop_cached')
REQUESTS = len(storm.PATHS)
"""Requests of one boot."""
CLIENT_TIMEOUT_S = 10.0
"""After this time without a response cloud-init, Ignition and CirrOS give up."""
PROCESSORS = 4
"""Number of a node's processors that the metadata path may use, and of its workers."""
PROXY_SHARE = {'two_hop': 0.52}
"""Mode shared: the part of a request's CPU time that the one worker of the shared proxy takes (doc/performance.md)."""
NEUTRON_PROCESSORS = 24
"""Processors of Neutron's API, for example three controllers with eight API workers each."""
ROUTERS, CLIENTS = 10_000, 100_000
NODES, INSTANCES_PER_NODE = 100, 500


@dataclass(frozen=True)
class LookupCost:
    """What one lookup costs Neutron: queries, and seconds of CPU time. ``per_boot``: lookups of a booting instance."""

    per_boot: float
    queries: float
    cpu_s: float


# Table "Lookups in a boot storm" of doc/performance.md: 500 instances, 5 requests each.
NO_CACHE = LookupCost(per_boot=REQUESTS, queries=105 / 2500, cpu_s=5.7 / 2500)
CACHED = LookupCost(per_boot=1, queries=15 / 500, cpu_s=0.8 / 500)


def workers_reached(requests: int, workers: int) -> float:
    """The expected number of workers that get at least one of ``requests``, each on a new connection."""
    return workers * (1 - (1 - 1 / workers) ** requests)


WORKER_CACHES = LookupCost(workers_reached(REQUESTS, PROCESSORS), CACHED.queries, CACHED.cpu_s)
"""Each worker has its own cache, so an instance is looked up once by each worker that gets one of its requests."""
LOOKUPS = {'no_cache': NO_CACHE, 'worker_caches': WORKER_CACHES, 'shared_cache': CACHED}
CACHE_NAMES = {
    'no_cache': 'no cache',
    'worker_caches': 'lookup_cache',
    'shared_cache': 'lookup_cache and cache_url',
}


class Costs:
    """Medians of the results: CPU time of a request, memory and attach time of a router, by peer."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.cpu_s: dict[str, float] = {}
        self.router_kib: dict[str, float] = {}
        self.attach_s: dict[str, float] = {}
        for peer in PATHS:
            steady = _of(results, 'steady', peer, connections='new', concurrency=64)
            density = _of(results, 'density', peer)
            if not steady:
                continue
            self.cpu_s[peer] = _median(steady, 'cpu_us') / 1e6
            if density:
                most = max(result['routers'] for result in density)
                largest = [result for result in density if result['routers'] == most]
                self.router_kib[peer] = _median(largest, 'memory_kib')
                self.attach_s[peer] = _median(largest, 'attach_s') / most

    def response_s(self, peer: str, clients: float) -> float:
        """Seconds until each of ``clients`` has a response, if all of them request at the same time."""
        return clients * self.request_s(peer)

    def request_s(self, peer: str) -> float:
        """Seconds per request under load. The limit is all processors, or the one worker of the shared proxy."""
        return self.cpu_s[peer] * max(1 / PROCESSORS, PROXY_SHARE.get(peer, 0.0))


def neutron_s(cost: LookupCost, instances: float) -> float:
    """Seconds of CPU time of Neutron for the boot of ``instances``."""
    return instances * cost.per_boot * cost.cpu_s


def _of(results: list[dict[str, Any]], kind: str, peer: str, **which: Any) -> list[dict[str, Any]]:
    return report._of(results, kind, peer, **which)


def _median(results: list[dict[str, Any]], key: str) -> float:
    found = report._median(results, key)
    assert found is not None, key
    return found


def _one_node(costs: Costs) -> list[str]:
    rows = []
    for peer, cpu_s in costs.cpu_s.items():
        memory = costs.router_kib.get(peer)
        rows.append(
            (
                report.NAMES[peer],
                f'{1e6 * cpu_s:,.0f}',
                f'{memory * ROUTERS / 2**20:,.2f}' if memory else '-',
                f'{costs.attach_s[peer] * ROUTERS:,.0f}' if peer in costs.attach_s else '-',
                f'{costs.response_s(peer, CLIENTS):,.1f}',
                f'{CLIENT_TIMEOUT_S / costs.request_s(peer):,.0f}',
                f'{CLIENTS * REQUESTS * costs.request_s(peer):,.0f}',
                f'{CLIENTS / 60 * cpu_s:,.2f}',
            )
        )
    return _table(
        (
            'path',
            'CPU per request, µs',
            'memory of the routers, GiB',
            'seconds until a process listens in every namespace',
            'seconds until each client has a response',
            'most clients that all get a response within 10 s',
            'seconds until all have booted',
            'processors at one request per client and minute',
        ),
        rows,
    )


def _cloud() -> list[str]:
    instances = NODES * INSTANCES_PER_NODE
    rows = []
    for name, cost in LOOKUPS.items():
        lookups = instances * cost.per_boot
        cpu_s = neutron_s(cost, instances)
        rows.append(
            (
                CACHE_NAMES[name],
                f'{cost.per_boot:.1f}',
                f'{lookups:,.0f}',
                f'{lookups * cost.queries:,.0f}',
                f'{cpu_s:,.0f}',
                f'{cpu_s / NEUTRON_PROCESSORS:,.0f}',
                f'{instances * REQUESTS:,}',
            )
        )
    calls = 2 * REQUESTS * instances
    rows.append(
        ("Neutron's agent and haproxy", '-', '-', f'up to {calls:,} calls', '-', '-', f'{instances * REQUESTS:,}')
    )
    return _table(
        (
            'cache',
            'lookups per instance',
            'lookups',
            'queries to Neutron',
            'CPU of Neutron, s',
            f'on {NEUTRON_PROCESSORS} processors, s',
            'requests to Nova',
        ),
        rows,
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f'| {" | ".join(columns)} |',
        f'|{"---|" * len(columns)}',
        *(f'| {" | ".join(row)} |' for row in rows),
        '',
    ]


def _check(costs: Costs, results: list[dict[str, Any]]) -> list[str]:
    rows = []
    for peer in costs.cpu_s:
        measured = _of(results, 'storm', peer)
        if measured:
            requests = sum(result['good'] + result['failed'] for result in measured) / len(measured)
            rows.append(
                (
                    report.NAMES[peer],
                    f'{requests * costs.cpu_s[peer] / 2:.1f}',
                    f'{_median(measured, "seconds"):.1f}',
                )
            )
    return _table(('path', 'model, s', 'measured, s'), rows)


def _plots(costs: Costs) -> None:
    counts = [10**power for power in range(2, 6)]
    peers = ('neutron', 'two_hop', 'one_hop')
    waits = {peer: [(n, costs.response_s(peer, n)) for n in counts] for peer in peers if peer in costs.cpu_s}
    memory = {peer: [(n, n * kib / 1024) for n in counts[:-1]] for peer, kib in costs.router_kib.items()}
    (report.DOC / 'scale-node.svg').write_text(
        plot.lines(
            [('Seconds until a response', waits), ('Memory of routers, MiB', memory)],
            report.NAMES,
            'clients at once; routers',
        )
    )
    nodes = [1, 10, 100, 1000]
    series = {name: [(n, neutron_s(cost, n * INSTANCES_PER_NODE)) for n in nodes] for name, cost in LOOKUPS.items()}
    (report.DOC / 'scale-cloud.svg').write_text(
        plot.lines([('CPU of Neutron while all instances boot, s', series)], CACHE_NAMES, 'nodes')
    )


def write(paths: Sequence[Path]) -> None:
    """Write the page and its plots."""
    results = [report._current_names(json.loads(line)) for path in paths for line in path.read_text().splitlines()]
    costs = Costs(results)
    _plots(costs)
    one_node, cloud, check = ('\n'.join(table) for table in (_one_node(costs), _cloud(), _check(costs, results)))
    text = f"""\
# Scale

How many routers and clients one node can serve, and what Neutron and Nova receive while a whole cloud boots.
`benchmarks/scale.py` calculates this page from the results of [Benchmark](benchmark.md) and from the storm in
[Performance](performance.md#lookups-in-a-boot-storm). Only the inputs were measured.

Assumptions:

- Processors are the limit, and Nova responds at once. A slower Nova makes requests wait, but costs the node no CPU
  time.
- The metadata path has {PROCESSORS} processors, and the agent has {PROCESSORS} workers. In mode `shared` the shared
  proxy has one worker, which takes about half of the CPU time of a request. So in this mode one processor is the
  limit.
- A booting instance sends {REQUESTS} requests, one after the other, each on a new connection. It gives up when a
  response takes {CLIENT_TIMEOUT_S:.0f} s.

## One node with {ROUTERS:,} routers and {CLIENTS:,} clients

![Seconds until a response, and memory of the routers](scale-node.svg)

{one_node}
- Seconds until a process listens: for Neutron, the start of one haproxy in each namespace; for metadata_wsgi, one
  socket in each namespace. The rules are not included. `metadata-wsgi attach` installs the rules too, see
  [Performance](performance.md#attach).
- Seconds until each client has a response: all clients send one request at the same moment.
- Seconds until all have booted: all clients send all requests of a boot. If the column before has less than
  {CLIENTS:,} clients, responses take longer than {CLIENT_TIMEOUT_S:.0f} s, and clients give up. The figure is then
  only the time that the requests would take.
- In mode `one_hop` each worker serves 4,096 connections at a time (`metadata_connections`). The shared proxy serves
  8,192, and the agent behind it 4,096 for each worker. Further connections wait in the kernel, in the queue of a
  listening socket.
- The keeper has one descriptor for each listening socket, and each worker that accepts connections in the namespaces
  has one too: {ROUTERS:,} or more for each process. Each process raises its soft limit to the hard limit
  (`LimitNOFILE` of the units).

## {NODES} nodes with {INSTANCES_PER_NODE} instances each boot at once

![CPU of Neutron while all instances boot](scale-cloud.svg)

{cloud}
- With `lookup_cache` each worker has a cache of its own. The {REQUESTS} new connections of an instance reach nearly
  all {PROCESSORS} workers, and each of these workers looks the instance up once. With `cache_url` the workers share
  the results, so an instance is looked up once. If each agent has one worker, a shared cache saves nothing in a boot.
- Queries are fewer than lookups, because lookups that wait are sent together.
- Without a cache Neutron is busy for minutes. If the lookup of a request takes more than 9 s, the request gets 503,
  and the instance must repeat it. So use `lookup_cache`.
- The {REQUESTS} requests of a boot have {len(set(storm.PATHS))} different paths. So `response_cache` hardly changes
  the load of Nova in a boot. It helps against instances that repeat a request again and again.

## Comparison with a measured storm

The boot storm of [Benchmark](benchmark.md): 500 instances on a machine with two processors. The model leaves out the
instances and the service in Nova's place. They used the same two processors, so the measured times are longer.

{check}"""
    (report.DOC / 'scale.md').write_text(text.rstrip() + '\n')


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    write([Path(name) for name in sys.argv[1:]])
