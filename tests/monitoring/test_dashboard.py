# SPDX-License-Identifier: Apache-2.0
"""The dashboard: its JSON against Grafana's own types, and its queries against a real Prometheus."""

import json

import pytest

from metadata_wsgi import instruments
from tests.e2e.conftest import eventually
from tests.monitoring import draw_dashboard
from tests.monitoring.monitored_cloud import (
    DASHBOARD,
    RULES,
    metric_names,
    monitored_cloud,
    program,
    queries,
    ranges,
    storm,
)

TEXT = DASHBOARD.read_text()
PANELS = json.loads(TEXT)['panels']
WITHOUT_DATA = {'Attached', 'Keeper', 'Listening sockets of the keeper', 'Nova hosts set aside, failed attempts'}
"""Panels of the keeper, which the programs of this test do not need, and of unreachable hosts."""


def test_the_dashboard_uses_metrics_that_exist():
    assert metric_names(TEXT) <= {instrument.name for instrument in instruments.ALL}


def test_every_metric_is_in_the_dashboard_or_in_an_alert():
    known = {instrument.name for instrument in instruments.ALL}
    assert metric_names(TEXT) | metric_names(RULES.read_text()) == known


def test_the_dashboard_is_what_grafana_reads():
    """Decoded and encoded again by Grafana's SDK, which is generated from its schema: no field is lost or changed."""
    sdk = pytest.importorskip('grafana_foundation_sdk')
    from grafana_foundation_sdk.cog import encoder, plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    assert sdk
    plugins.register_default_plugins()
    written = json.loads(TEXT)
    read = json.loads(encoder.JSONEncoder(sort_keys=True).encode(Dashboard.from_json(written)))
    assert list(lost(written, read)) == []


def lost(written, read, path=''):
    """The paths in ``written`` that are missing or different in ``read``."""
    if isinstance(written, dict):
        for key, value in written.items():
            if not isinstance(read, dict) or key not in read:
                if value not in (None, {}, []):
                    yield f'{path}.{key}'
            else:
                yield from lost(value, read[key], f'{path}.{key}')
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from lost(one, other, f'{path}[{number}]')
    elif written != read:
        yield path


def test_panels_do_not_overlap():
    cells = [
        (x, y)
        for panel in PANELS
        for x in range(panel['gridPos']['x'], panel['gridPos']['x'] + panel['gridPos']['w'])
        for y in range(panel['gridPos']['y'], panel['gridPos']['y'] + panel['gridPos']['h'])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_queries_of_the_panels_have_data_during_a_boot_storm(tmp_path):
    if not program('prometheus'):
        pytest.skip('prometheus is not installed (make test unpacks it)')
    with monitored_cloud(tmp_path) as (cloud, port, prometheus):
        storm(cloud, port, 6)

        def empty():
            return {
                panel['title']
                for panel in PANELS
                if not any(prometheus.get('query', query=text)['result'] for text, _ in queries(panel))
            }

        eventually(lambda: empty() <= WITHOUT_DATA, lambda: f'every panel has data, but {empty()}', within_s=90)
        now_s = float(prometheus.get('query', query='time()')['result'][0])
        drawn = draw_dashboard.draw(PANELS, lambda panel: ranges(prometheus, panel, now_s - 20, now_s))
        assert drawn.count('no data') <= len(WITHOUT_DATA)
        rules = [rule for group in prometheus.get('rules')['groups'] for rule in group['rules']]
        assert {rule['health'] for rule in rules} == {'ok'}
