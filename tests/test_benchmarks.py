# SPDX-License-Identifier: Apache-2.0
"""The report and the plots of the benchmark, from given results; the stages of slow requests, from a recorded trace.

``tox -e bench`` runs the benchmark itself.
"""

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / 'benchmarks'


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark, imported by the same names as in ``run.py``."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plot
    import report
    import slow_requests
    import storm

    modules = {'plot': plot, 'report': report, 'slow_requests': slow_requests, 'storm': storm}
    yield modules
    for name in modules:
        del sys.modules[name]


def steady(peer, cpu_us, failed=0):
    """A result as ``run.py`` writes it."""
    times = {'p50_ms': 1.0, 'p99_ms': cpu_us / 100, 'per_s': 1e6 / cpu_us, 'seconds': 4.0}
    load = {
        'kind': 'steady',
        'connections': 'new',
        'concurrency': 8,
        'good': 1000,
        'failed': failed,
        'foreign_cores': 0.0,
    }
    return {**load, **times, 'peer': peer, 'run': 1, 'cpu_us': cpu_us}


def density(peer, routers, attach_s):
    """A result of many routers."""
    counted = {'attach_s': attach_s, 'memory_kib': 3500.0, 'files': 10.0, 'processes': 101}
    return {**steady(peer, 2000.0), **counted, 'kind': 'density', 'routers': routers}


def written(bench, tmp_path, monkeypatch, results):
    """The page for these results."""
    monkeypatch.setattr(bench['report'], 'DOC', tmp_path)
    path = tmp_path / 'results.jsonl'
    path.write_text('\n'.join(json.dumps(result) for result in results))
    bench['report'].write([path])
    return (tmp_path / 'benchmark.md').read_text()


def test_report_starts_with_ratios_to_neutron(bench, tmp_path, monkeypatch):
    results = [steady('neutron', 2400.0), steady('one_hop', 250.0), steady('one_hop', 200.0), steady('one_hop', 150.0)]
    page = written(bench, tmp_path, monkeypatch, results)
    assert '| CPU per request, new connections, 8 at once | 1/12.0 |' in page
    assert page.index('1/12.0') < page.index('## ')
    assert '| mode one_hop | 200 (150-250) |' in page


def test_report_has_failures(bench, tmp_path, monkeypatch):
    error = {'kind': 'error', 'case': 'storm', 'peer': 'two_hop', 'run': 1, 'error': 'it did not start'}
    page = written(bench, tmp_path, monkeypatch, [steady('neutron', 2400.0, failed=250), error])
    assert '250 (20.0 %)' in page
    assert '- mode shared, storm: not measured, it failed.' in page


def test_report_compares_the_largest_numbers_of_routers(bench, tmp_path, monkeypatch):
    results = [density('neutron', 10, 9.0), density('neutron', 100, 4.0), density('one_hop', 1000, 2.0)]
    page = written(bench, tmp_path, monkeypatch, results)
    assert '| time to attach a router | 1/20.0 |' in page


def test_plots_are_well_formed_and_have_all_names(bench, tmp_path, monkeypatch):
    results = [
        steady('neutron', 2400.0),
        steady('floor', 80.0),
        density('neutron', 10, 0.5),
        density('neutron', 100, 4.0),
    ]
    page = written(bench, tmp_path, monkeypatch, results)
    drawn = {path.name: ET.fromstring(path.read_text()) for path in tmp_path.glob('*.svg')}
    assert sorted(drawn) == ['benchmark-cpu.svg', 'benchmark-growth.svg']
    assert all(f']({name})' in page for name in drawn)
    texts = [element.text for element in drawn['benchmark-cpu.svg'].iter('{http://www.w3.org/2000/svg}text')]
    assert {'Neutron 29 and haproxy', 'two bare haproxies', '2,400 µs', '80.0 µs'} <= set(texts)


def test_storm_boot_has_28_requests(bench):
    storm = bench['storm']
    assert len(storm.PATHS) == 28
    guest = storm.Guest('g0', '10.1.0.2')
    assert guest.request().startswith(b'GET /openstack HTTP/1.1\r\n')
    assert guest.receive(b'HTTP/1.1 200 OK\r\nContent-Le') is None
    assert guest.receive(b'ngth: 5\r\n\r\nabc') is None
    assert guest.receive(b'de') == '200'


def test_storm_counts_a_response_that_ends_early_as_cut(bench):
    guest = bench['storm'].Guest('g0', '10.1.0.2')
    assert guest.receive(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc') is None
    assert guest.receive(b'') == 'cut'


@pytest.fixture
def trace(bench):
    """A recorded trace: the check of the port, a request of curl on new connections, and one of wrk on reused ones."""
    slow_requests = bench['slow_requests']
    found = slow_requests.Trace(
        {12628: slow_requests.PROXY, 13233: slow_requests.PROXY, 13386: slow_requests.AGENT, 12428: slow_requests.NOVA},
        {slow_requests.PROXY: 46, slow_requests.AGENT: 16},
    )
    found.read(Path(__file__).with_name('slow_requests.trace').read_text().splitlines())
    return found


def test_trace_of_slow_requests_has_all_stages(bench, trace):
    first, second = trace.exchanges
    stages_us = [round(1000 * stage) for stage in bench['slow_requests'].stages_ms(second)]
    assert stages_us == [158, 67, 258, 65, 366, 49, 34, 672, 110, 385, 100]
    assert round(first.accepted_s - first.opened_s, 6) == 0.682942
    assert [first.inner.is_first, second.inner.is_first] == [True, False]


def test_trace_of_slow_requests_ends_in_a_table(bench, trace):
    table = bench['slow_requests'].table(trace.exchanges[1:])
    assert '| in the accept queue of the namespace proxy | 0.16 | 0.16 |' in table
    assert '| all stages | 2.26 | 2.26 |' in table
    assert '1 requests, 99 % within 2.26 ms; 0 are left out.' in table


def test_trace_of_slow_requests_leaves_out_a_request_with_a_negative_stage(bench, trace):
    first, second = trace.exchanges
    first.accepted_s = first.opened_s - 1
    assert '1 requests, 99 % within 2.26 ms; 1 are left out.' in bench['slow_requests'].table([first, second])
