# SPDX-License-Identifier: Apache-2.0
"""A worker without privileges sends its spans to a collector."""

import http.server
import threading

import pytest

from tests.cloud import SHIPPED

from .conftest import UnixConnection, eventually, request

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}


@pytest.fixture
def collector():
    """A collector of OpenTelemetry on loopback; ``received`` are the bodies of its requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.received.append((self.path, self.rfile.read(int(self.headers['Content-Length']))))
            self.send_response(200)
            self.send_header('Content-Length', '0')
            self.end_headers()

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.received = []
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_otel_spans_reach_a_collector(cloud, agent, collector, tmp_path, monkeypatch):
    pytest.importorskip('opentelemetry.exporter.otlp.proto.http')
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_ENDPOINT', f'http://127.0.0.1:{collector.server_port}')
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_COMPRESSION', 'none')
    monkeypatch.setenv('OTEL_BSP_SCHEDULE_DELAY', '100')
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text().replace(' request_id peer', ' request_id otel peer'))
    cloud.configure(metadata_paste_config=paste)
    running = agent()
    assert request(UnixConnection(cloud.socket), 'GET', '/', A)[0] == 200
    eventually(lambda: any(b'instance-a' in body for _, body in collector.received), running.text)
    path, body = next(found for found in collector.received if b'instance-a' in found[1])
    assert path == '/v1/traces'
    for name in (b'upstream', b'signature', b'instance', b'header_source', b'metadata-wsgi-agent'):
        assert name in body
