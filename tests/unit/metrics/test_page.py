# SPDX-License-Identifier: Apache-2.0
import gevent
import pytest
import webtest
from gevent import socket

from metadata_wsgi import limits
from metadata_wsgi.metrics import page as metrics_page
from metadata_wsgi.metrics.page import MetricsPage


def test_the_metrics_page_has_one_path():
    app = webtest.TestApp(MetricsPage(lambda: b'a 1.0\n'))
    response = app.get('/metrics')
    assert (response.text, response.content_type) == ('a 1.0\n', 'text/plain')
    app.get('/', status=404)
    app.post('/metrics', status=405)


def test_metrics_that_cannot_be_read_are_a_503(caplog):
    def page():
        raise FileNotFoundError('no directory')

    webtest.TestApp(MetricsPage(page)).get('/metrics', status=503)
    assert 'The metrics cannot be read: no directory' in caplog.text


@pytest.mark.parametrize('sent', [b'', b'GET /metrics HTTP/1.1\r\n'], ids=['nothing', 'half a header'])
def test_idle_connections_do_not_keep_others_from_the_page(sent, monkeypatch):
    """Healthcheck of a load balancer, on the same port."""
    monkeypatch.setattr(limits, 'HEADER_TIMEOUT_S', 1.0)
    listener = socket.create_server(('127.0.0.1', 0))
    server = metrics_page.serve(listener, MetricsPage(lambda: b'a 1.0\n'))
    idle = [socket.create_connection(listener.getsockname()) for _ in range(metrics_page.MAX_CLIENTS)]
    for connection in idle:
        connection.sendall(sent)
    gevent.sleep(0)
    with socket.create_connection(listener.getsockname(), 20) as client:
        client.sendall(b'GET /metrics HTTP/1.1\r\n\r\n')
        assert client.recv(1000).startswith(b'HTTP/1.1 200 ')
    for connection in (*idle, listener):
        connection.close()
    server.stop()


@pytest.fixture
def serve(monkeypatch):
    """Serves an app with a short timeout. Returns the listener."""
    monkeypatch.setattr(limits, 'HEADER_TIMEOUT_S', 1.0)
    listener = socket.create_server(('127.0.0.1', 0))
    servers = []

    def start(app):
        servers.append(metrics_page.serve(listener, app))
        return listener

    yield start
    servers[0].stop()
    listener.close()


def test_the_time_of_the_response_is_not_limited_by_the_timeout_of_the_header(serve):
    """A health check that asks Neutron and Nova, after an idle time on the same connection."""

    def app(environ, start_response):
        gevent.sleep(1.5)
        start_response('200 OK', [('Content-Length', '2')])
        return [b'ok']

    with socket.create_connection(serve(app).getsockname(), 20) as client:
        client.sendall(b'GET / HTTP/1.1\r\n\r\n')
        assert client.recv(1000).startswith(b'HTTP/1.1 200 ')


def test_clients_that_do_not_read_the_response_do_not_keep_others_from_the_page(serve, capsys):
    """Nor is a traceback written for them."""
    page = [b'a' * 20_000_000]
    listener = serve(MetricsPage(lambda: page[0]))
    slow = [socket.create_connection(listener.getsockname()) for _ in range(metrics_page.MAX_CLIENTS)]
    for connection in slow:
        connection.sendall(b'GET /metrics HTTP/1.1\r\n\r\n')
        connection.recv(1)
    page[0] = b'a 1.0\n'
    with socket.create_connection(listener.getsockname(), 20) as client:
        client.sendall(b'GET /metrics HTTP/1.1\r\n\r\n')
        assert client.recv(1000).startswith(b'HTTP/1.1 200 ')
    for connection in slow:
        connection.close()
    assert 'Traceback' not in capsys.readouterr().err
