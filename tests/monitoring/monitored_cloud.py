# SPDX-License-Identifier: Apache-2.0
"""An agent and a namespace proxy under load, and a real Prometheus that scrapes them and evaluates the alert rules.

    python -m tests.monitoring.monitored_cloud DIRECTORY SECONDS

writes ``dashboard.html`` into the directory, with the panels of ``etc/grafana/metadata_wsgi.json`` during a storm of
booting instances in which Nova fails for a while.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import re
import shutil
import sys
import time
import urllib.parse
from pathlib import Path

from tests.cloud import ROUTER, SHIPPED, Cloud
from tests.e2e.conftest import BIN, eventually, free_port, programs_in, rejects_unidentified_request
from tests.monitoring import draw_dashboard

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / 'etc' / 'prometheus' / 'metadata_wsgi.rules.yml'
DASHBOARD = ROOT / 'etc' / 'grafana' / 'metadata_wsgi.json'
BOOT = [
    '/openstack', '/openstack/latest/meta_data.json', '/openstack/latest/user_data',
    '/openstack/latest/network_data.json', '/openstack/latest/vendor_data.json', '/latest/meta-data/',
    '/latest/meta-data/instance-id',
]  # fmt: skip

PROMETHEUS = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [RULES]
scrape_configs:
  - job_name: metadata_wsgi
    static_configs: [{targets: ['127.0.0.1:METRICS']}]
"""


def program(name: str) -> str | None:
    """The path of promtool or prometheus; None where it is not installed."""
    return shutil.which(name)


class Prometheus:
    """Queries a Prometheus on loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **parameters: object) -> object:
        """The data of an answer of the API."""
        connection = http.client.HTTPConnection('127.0.0.1', self._port, timeout=20)
        with contextlib.closing(connection):
            connection.request('GET', f'/api/v1/{path}?{urllib.parse.urlencode(parameters)}')
            answer = json.loads(connection.getresponse().read())
        assert answer['status'] == 'success', answer
        return answer['data']

    def is_ready(self) -> bool:
        """Whether it has scraped the agent."""
        try:
            return bool(self.get('query', query='metadata_wsgi_build_info')['result'])
        except (OSError, ValueError):  # not a JSON answer: it is starting
            return False


def queries(panel: dict) -> list[tuple[str, str]]:
    """(expression, legend) of each target of a panel, its variables replaced."""
    found = []
    for target in panel['targets']:
        expression = target['expr'].replace('$host', '.*').replace('$__rate_interval', '10s').replace('[5m]', '[10s]')
        assert '$' not in expression, expression
        found.append((expression, target['legendFormat']))
    return found


def ranges(prometheus: Prometheus, panel: dict, start_s: float, end_s: float) -> list[draw_dashboard.Series]:
    """The series of a panel."""
    found = []
    for expression, legend in queries(panel):
        answer = prometheus.get('query_range', query=expression, start=start_s, end=end_s, step=1)
        for one in answer['result']:
            values = [(at, float(value)) for at, value in one['values'] if value != 'NaN']
            text = re.sub('{{ *([a-z]+) *}}', lambda name: one['metric'].get(name[1], ''), legend)  # noqa: B023
            if values:
                found.append((text, values))
    return found


@contextlib.contextmanager
def monitored_cloud(directory: Path):
    """(cloud, port of the namespace proxy, Prometheus) with all programs running."""
    metrics, proxy_port, port = free_port(), free_port(), free_port()
    paste = directory / 'api-paste.ini'
    text = SHIPPED.read_text().replace(' request_id peer', ' request_id metrics peer')
    paste.write_text(text.replace(' header_source instance ', ' header_source lookup_cache instance '))
    rules = PROMETHEUS.replace('RULES', str(RULES)).replace('METRICS', str(metrics))
    (directory / 'prometheus.yml').write_text(rules)
    with Cloud(directory) as cloud, programs_in(directory) as start:
        cloud.configure(metadata_paste_config=paste, request_timeout=2, metadata_workers=2)
        more = f'[metrics]\ndirectory = {directory / "metrics"}\nlisten = 127.0.0.1:{metrics}\n'
        cloud.conf_file.write_text(cloud.conf_file.read_text() + more)
        start('agent', BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file)
        eventually(lambda: rejects_unidentified_request(cloud.socket), 'the agent serves')
        (directory / 'metrics').chmod(0o777)  # in tests the two programs may run as different users
        start(
            'proxy', BIN / 'quantum-ns-metadata-proxy', '--nodaemonize', f'--router_id={ROUTER}',
            f'--state_path={cloud.state_path}', f'--metadata_port={proxy_port}', '--metadata_host=127.0.0.1',
            '--allow_any_destination', f'--metrics_directory={directory / "metrics"}',
        )  # fmt: skip
        start(
            'prometheus', program('prometheus'), f'--config.file={directory / "prometheus.yml"}',
            f'--storage.tsdb.path={directory / "tsdb"}', f'--web.listen-address=127.0.0.1:{port}',
        )  # fmt: skip
        prometheus = Prometheus(port)
        eventually(prometheus.is_ready, 'Prometheus has scraped the agent', within_s=60)
        yield cloud, proxy_port, prometheus


def boot(port: int) -> list[int]:
    """The requests of one boot, on new connections; returns their statuses."""
    statuses = []
    for path in BOOT:
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
        with contextlib.closing(connection):
            connection.request('GET', path)
            statuses.append(connection.getresponse().status)
    return statuses


def storm(cloud: Cloud, port: int, seconds: float, *, fails: tuple[float, float] = (0.4, 0.6)) -> int:
    """Boots for ``seconds``, eight at a time; between the two parts of the time Nova fails. Returns how many."""
    started_s, boots = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        while (passed := (time.monotonic() - started_s) / seconds) < 1:
            cloud.nova.statuses = [503] * 1000 if fails[0] < passed < fails[1] else []
            boots += len(list(pool.map(boot, [port] * 8)))
    return boots


def metric_names(text: str) -> set[str]:
    """The metrics that a text of rules or queries has, without the suffixes of histograms."""
    found = set(re.findall(r'\bmetadata_wsgi_[a-z_]+', text)) - {'metadata_wsgi_rules'}
    return {re.sub('_seconds_(bucket|count|sum)$', '_seconds', name) for name in found}


if __name__ == '__main__':
    out, seconds = Path(sys.argv[1]), float(sys.argv[2])
    with monitored_cloud(out) as (cloud, port, prometheus):
        print(storm(cloud, port, seconds), 'boots')
        panels = json.loads(DASHBOARD.read_text())['panels']
        end_s = time.time()
        drawn = draw_dashboard.draw(panels, lambda panel: ranges(prometheus, panel, end_s - seconds, end_s))
        (out / 'dashboard.html').write_text(drawn)
        print(json.dumps([alert['labels']['alertname'] for alert in prometheus.get('alerts')['alerts']]))
