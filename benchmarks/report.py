# SPDX-License-Identifier: Apache-2.0
"""Writes doc/benchmark.md and its plots from results: ratios first, then the measured values, then the machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plot

DOC = Path(__file__).resolve().parent.parent / 'doc'
NAMES = {
    'neutron': 'Neutron 29 and haproxy',
    'two_hop': 'mode shared',
    'two_hop_cached': 'mode shared, cached',
    'one_hop': 'mode one_hop',
    'one_hop_cached': 'mode one_hop, cached',
    'floor': 'two bare haproxies',
}
INTRODUCTION = """\
# Benchmark

This page compares the [modes](modes.md) of metadata_wsgi with two other paths of a request:

- "Neutron 29 and haproxy" is what most operators run today: one haproxy in the namespace of each router, configured by
  Neutron's own driver, and Neutron's metadata agent behind it. A test double in the agent's process answers its RPC
  calls. No Neutron server runs.
- "Two bare haproxies" is the lower limit: two haproxies, one behind the other. They add constant headers and look
  nothing up.

`tox -e bench` (`benchmarks/run.py`) measures all paths in turns on one machine, and writes this page.

How to read the tables:

- Figures are medians. The smallest and the largest figure of the runs are in parentheses.
- CPU is the user and system time of all processes of the path, divided by the number of successful responses.
- "99 % within ms": 99 % of the responses came within this time.
- "Cached" means that the filter `response_cache` is on.
- The ratios are valid on other machines, the times are not.

Mode `process` is not in the tables. Its memory was measured separately: 37.8 MB for each router, with 20 routers and
all processes counted. Requests pass the same two programs as in mode `shared`.

"KiB per router" counts only what routers add. In mode `shared`, keeper and shared proxy themselves take 36.7 MiB, for
one router or for a thousand. [Performance](performance.md#memory-of-a-host) lists the parts of this memory, and the
memory of all processes if an L3 agent starts `metadata-wsgi-haproxy`.
"""
Results = list[dict[str, Any]]


def write(paths: Sequence[Path]) -> None:
    """Write the page and the plots from these result files."""
    results = [_current_names(json.loads(line)) for path in paths for line in path.read_text().splitlines()]
    text = [
        INTRODUCTION,
    ]
    text += _ratios(results)
    text += _steady(results)
    text += _storm(results)
    text += _density(results)
    text += _notes(results)
    (DOC / 'benchmark.md').write_text('\n'.join(text).rstrip() + '\n')


def _current_names(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the current names. Results of earlier versions have other names."""
    for old, new in (('at_once', 'concurrency'), ('asked', 'sent')):
        if old in result:
            result[new] = result.pop(old)
    if result.get('connections') == 'kept':
        result['connections'] = 'keepalive'
    return result


def _of(results: Results, kind: str, peer: str | None = None, **which: Any) -> Results:
    return [
        result
        for result in results
        if result['kind'] == kind
        and peer in (None, result.get('peer'))
        and all(result.get(key) == value for key, value in which.items())
    ]


def _peers(results: Results) -> list[str]:
    there = {result['peer'] for result in results}
    return [peer for peer in NAMES if peer in there]


def _median(results: Iterable[dict[str, Any]], key: str) -> float | None:
    values = [result[key] for result in results if result.get(key) is not None]
    return statistics.median(values) if values else None


def _range(results: Results, key: str) -> str:
    """Median (minimum-maximum)."""
    values = [result[key] for result in results if result.get(key) is not None]
    if not values:
        return '-'
    text = _number(statistics.median(values))
    return f'{text} ({_number(min(values))}-{_number(max(values))})' if len(values) > 1 else text


def _number(value: float) -> str:
    if value >= 100:
        return f'{value:,.0f}'
    return f'{value:.1f}' if value >= 10 else f'{value:.2f}'


def _failed(results: Results) -> str:
    failed, good = (sum(result[key] for result in results) for key in ('failed', 'good'))
    if not failed:
        return '0'
    return f'{failed:,} ({100 * failed / (failed + good):.1f} %)'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    return [*lines, *('| ' + ' | '.join(row) + ' |' for row in rows), '']


def _ratios(results: Results) -> list[str]:
    """A table of ratios to Neutron."""
    load = {'connections': 'new', 'concurrency': 8}
    figures = [
        ('CPU per request, new connections, 8 at once', 'steady', 'cpu_us', load),
        ('requests per second, new connections, 8 at once', 'steady', 'per_s', load),
        ('slowest 1 %, new connections, 64 at once', 'steady', 'p99_ms', {'connections': 'new', 'concurrency': 64}),
        ('boot storm, seconds', 'storm', 'seconds', {}),
        ('boot storm, CPU per request', 'storm', 'cpu_us', {}),
        ('memory for one more router', 'density', 'memory_kib', {}),
        ('time to attach a router', 'density', 'each_ms', {}),
    ]
    for result in _of(results, 'density'):
        result['each_ms'] = 1000 * result['attach_s'] / result['routers']
    ours = [peer for peer in _peers([r for r in results if 'peer' in r]) if peer not in ('neutron', 'floor')]
    rows = []
    for name, kind, key, which in figures:
        theirs = _median(_largest(_of(results, kind, 'neutron', **which)), key)
        cells = [name]
        for peer in ours:
            own = _median(_largest(_of(results, kind, peer, **which)), key)
            if not theirs or own is None:
                cells.append('-')
                continue
            if key == 'per_s':
                cells.append(f'{own / theirs:.1f} times')
            else:
                cells.append(f'1/{theirs / own:.1f}' if own > 0 else 'none')
        if set(cells[1:]) != {'-'}:
            rows.append(cells)
    return _table(['compared with Neutron 29 and haproxy', *(NAMES[peer] for peer in ours)], rows) if rows else []


def _largest(results: Results) -> Results:
    """The density results with the most routers; all results of other kinds."""
    most = max((result.get('routers', 0) for result in results), default=0)
    return [result for result in results if result.get('routers', 0) == most]


def _bars(name: str, title: str, results: Results, key: str, beside: str) -> list[str]:
    values = []
    for peer in _peers(results):
        found = [result[key] for result in _of(results, results[0]['kind'], peer) if result[key] is not None]
        if found:
            median = statistics.median(found)
            values.append((peer, NAMES[peer], median, min(found), max(found), f'{_number(median)} {beside}'))
    if not values:
        return []
    (DOC / f'benchmark-{name}.svg').write_text(plot.bars(title, values))
    return [f'![{title}](benchmark-{name}.svg)', '']


def _rows(found: Results, keys: Sequence[str]) -> list[list[str]]:
    """A row per peer: name, values of ``keys``, failures, number of runs."""
    rows = []
    for peer in _peers(found):
        own = [result for result in found if result['peer'] == peer]
        rows.append([NAMES[peer], *(_range(own, key) for key in keys), _failed(own), str(len(own))])
    return rows


def _steady(results: Results) -> list[str]:
    text = []
    found = _of(results, 'steady')
    for connections in dict.fromkeys(result['connections'] for result in found):
        for concurrency in sorted({result['concurrency'] for result in found if result['connections'] == connections}):
            here = _of(results, 'steady', connections=connections, concurrency=concurrency)
            what = 'A new connection for each request' if connections == 'new' else 'Keep-alive connections'
            text += [f'## {what}, {concurrency} at once', '']
            if connections == 'new' and concurrency == 8:
                text += _bars('cpu', 'CPU per request, new connections, 8 at once', here, 'cpu_us', 'µs')
            if connections == 'new' and concurrency == 64:
                text += _bars('p99', 'Slowest 1 % of responses, 64 at once', here, 'p99_ms', 'ms')
            head = ['path', 'CPU per request, µs', 'requests/s', 'median ms', '99 % within ms', 'failed', 'runs']
            text += _table(head, _rows(here, ('cpu_us', 'per_s', 'p50_ms', 'p99_ms')))
    return text


def _storm(results: Results) -> list[str]:
    found = _of(results, 'storm')
    if not found:
        return []
    guests, requests = found[0]['guests'], found[0]['sent'] // found[0]['guests']
    text = [
        f'## Boot storm: {guests} instances, {requests} requests each, on new connections, behind 50 routers',
        '',
    ]
    text += _bars('storm', 'Seconds until the last instance has booted', found, 'seconds', 's')
    head = ['path', 'seconds', 'CPU per request, µs', 'median ms', '99 % within ms', 'failed', 'runs']
    return text + _table(head, _rows(found, ('seconds', 'cpu_us', 'p50_ms', 'p99_ms')))


def _density(results: Results) -> list[str]:
    found = _of(results, 'density')
    if not found:
        return []
    text = ['## Many routers on one host', '']
    rows, series = [], {'cpu_us': {}, 'memory_kib': {}, 'attach_s': {}}  # type: ignore[var-annotated]
    for peer in _peers(found):
        for routers in sorted({result['routers'] for result in _of(found, 'density', peer)}):
            own = _of(found, 'density', peer, routers=routers)
            cells = [_range(own, key) for key in ('memory_kib', 'attach_s', 'files', 'cpu_us')]
            processes = f'{_median(own, "processes"):.0f}'
            rows.append([NAMES[peer], f'{routers:,}', *cells, processes, _failed(own), str(len(own))])
            for key, by_peer in series.items():
                if value := _median(own, key):
                    by_peer.setdefault(peer, []).append((routers, value))
    panels = [
        ('CPU per request, µs', series['cpu_us']),
        ('Memory per router, KiB', series['memory_kib']),
        ('Attaching all of them, s', series['attach_s']),
    ]
    (DOC / 'benchmark-growth.svg').write_text(plot.lines(panels, NAMES, 'routers on the host'))
    text += ['![Growth with the number of routers](benchmark-growth.svg)', '']
    head = ['path', 'routers', 'KiB per router', 'all attached, s', 'descriptors per router', 'CPU per request, µs']
    return text + _table([*head, 'processes', 'failed', 'runs'], rows)


def _notes(results: Results) -> list[str]:
    machines = _of(results, 'machine')
    text = ['## The machine and the method', '']
    for one in machines[:1]:
        text += [', '.join(f'{key} {value}' for key, value in one.items() if key != 'kind') + '.', '']
    text += [
        "- A haproxy in Nova's place responds to signed requests with 600 bytes from memory.",
        '- In mode `shared` keeper, shared proxy and agent run. In mode `one_hop` keeper and agent run.',
        '- Lookups read a YAML file. Every request reaches Nova, except in the rows with cached responses.',
        '- In the boot storm the time of a request starts before its connection is opened, otherwise when it is sent.',
        '- "Failed" counts every status except 200, and every broken connection. The times include failed requests.',
        '- "KiB per router": the proportional set size of all processes of the path after attaching, minus that',
        '  before, divided by the number of routers.',
        '- "All attached": the time until all routers accept connections, as at the start of an L3 agent. Neutron',
        '  starts a haproxy for each router. In the modes `shared` and `one_hop` the keeper gets one message for each',
        '  router. The redirect rules exist before.',
        "- `metadata_workers` has its default, half the processors, in Neutron's agent and in ours.",
    ]
    loud = [one for one in results if one.get('foreign_cores', 0) > 0.25]
    measured = [one for one in results if 'foreign_cores' in one]
    if loud:
        text += [
            f'- In {len(loud)} of {len(measured)} measurements other processes used more than a quarter of a core.'
        ]
    for one in _of(results, 'error'):
        text += [f'- {NAMES.get(one["peer"], one["peer"])}, {one["case"]}: not measured, it failed.']
    text += [f'- Not complete: {one["why"]}.' for one in _of(results, 'cut')]
    return text
