# SPDX-License-Identifier: Apache-2.0
"""Two workers count; a separate gunicorn, started as the paste file says, serves the sum."""

import contextlib
import http.client
import re
import signal

from tests.cloud import SHIPPED

from .conftest import UnixConnection, eventually, free_port, request

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}


def get(port, path):
    return request(http.client.HTTPConnection('127.0.0.1', port, timeout=20), 'GET', path)


def page(port):
    try:
        return get(port, '/metrics')
    except OSError:
        return 0, {}, b''


def test_metrics_of_two_workers_are_added_up(cloud, agent, programs, tmp_path):
    paste = tmp_path / 'api-paste.ini'
    text = SHIPPED.read_text().replace(
        ' catch_errors request_id peer_credentials deadline',
        ' catch_errors request_id metrics peer_credentials deadline',
    )
    paste.write_text(text.replace('[DEFAULT]', f'[DEFAULT]\nconfig_file = {cloud.conf_file}', 1))
    cloud.configure(api_paste_config=paste, metadata_workers=2)
    cloud.conf_file.write_text(cloud.conf_file.read_text() + f'[metrics]\ndirectory = {tmp_path / "metrics"}\n')
    agent()
    # Open at the same time, so that both workers have some of them.
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(UnixConnection(cloud.socket))) for _ in range(16)]
        for connection in connections:
            connection.request('GET', '/', headers=A)
            assert connection.getresponse().read()
    for _ in range(3):
        assert request(UnixConnection(cloud.socket), 'GET', '/', {**A, 'X-Forwarded-For': '10.1.1.77'})[0] == 404

    port = free_port()
    programs('gunicorn', '--paste', f'{paste}#metrics', '--bind', f'127.0.0.1:{port}')
    eventually(lambda: page(port)[0] == 200, 'the metrics are served')
    text = page(port)[2].decode()
    counts = dict(re.findall(r'^metadata_wsgi_request_seconds_count{(.*)} (\S+)', text, re.MULTILINE))
    assert counts['reached="upstream",status="200"'] == '16.0'
    assert counts['reached="source",status="404"'] == '3.0'
    # An instance cannot read it.
    assert request(UnixConnection(cloud.socket), 'GET', '/metrics', A)[2].startswith(b'{"uuid"')


def with_metrics(cloud, tmp_path, port):
    """Configure an agent that counts and serves its metrics on ``port``."""
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text().replace(' request_id peer', ' request_id metrics peer'))
    cloud.configure(metadata_paste_config=paste)
    paste.write_text(paste.read_text().replace(' request_id metrics', ' request_id healthcheck metrics'))
    more = f'[healthcheck]\ndisable_by_file_path = {tmp_path / "drained"}\n'
    more += f'[metrics]\ndirectory = {tmp_path / "metrics"}\nlisten = 127.0.0.1:{port}\n'
    cloud.conf_file.write_text(cloud.conf_file.read_text() + more)


def series(port):
    """Series -> value."""
    found = []

    def is_served():
        # It is 503 if a program that starts has the lock of the directory for longer than a second.
        status, _, text = page(port)
        found[:] = [text.decode()]
        return status == 200

    eventually(is_served, 'the page is served')
    return dict(re.findall(r'^(\w+(?:{.*})?) (\S+)$', found[0], re.MULTILINE))


def test_the_agent_serves_its_metrics_and_those_of_the_namespace_proxy(cloud, agent, proxy, guest, tmp_path):
    port = free_port()
    with_metrics(cloud, tmp_path, port)
    running = agent()
    (tmp_path / 'metrics').chmod(0o777)  # in tests the two programs may run as different users
    _, proxy_port = proxy(None, f'--metrics_directory={tmp_path / "metrics"}')
    assert guest(proxy_port)[0] == 200
    cloud.nova.statuses = [503]
    assert guest(proxy_port)[0] == 200
    assert guest(proxy_port, target='no-slash')[0] == 400
    found = series(port)
    assert found['metadata_wsgi_request_seconds_count{reached="upstream",status="200"}'] == '2.0'
    assert found['metadata_wsgi_namespace_proxy_requests_total{status="200"}'] == '2.0'
    assert found['metadata_wsgi_lookup_seconds_count{result="one"}'] == '2.0'
    assert found['metadata_wsgi_service_seconds_count{outcome="ok",service="nova"}'] == '2.0'
    assert found['metadata_wsgi_service_seconds_count{outcome="error",service="nova"}'] == '1.0'
    assert found['metadata_wsgi_retries_total{service="nova"}'] == '1.0'
    assert found['metadata_wsgi_refused_total{reason="malformed"}'] == '1.0'
    assert found['metadata_wsgi_workers{program="agent"}'] == '1.0'
    assert found['metadata_wsgi_workers{program="namespace_proxy"}'] == '1.0'
    # The same address has the health checks.
    assert get(port, '/healthcheck')[0] == get(port, '/healthcheck/live')[0] == 200
    (tmp_path / 'drained').touch()
    status, _, text = get(port, '/healthcheck')
    assert (status, text.splitlines()[0]) == (503, b'DISABLED BY FILE')
    assert (get(port, '/healthcheck/live')[0], guest(proxy_port)[0], get(port, '/')[0]) == (200, 200, 404)
    assert series(port)['metadata_wsgi_drained'] == '1.0'
    # A reload replaces the worker; its counts stay.
    worker = running.workers()
    running.kill(signal.SIGHUP)
    eventually(lambda: running.workers() and not set(worker) & set(running.workers()), 'the worker is replaced')
    eventually(lambda: series(port).get('metadata_wsgi_worker_starts_total{program="agent"}') == '2.0', 'it serves')
    assert series(port)['metadata_wsgi_retries_total{service="nova"}'] == '1.0'


def test_a_metrics_address_without_the_filter_stops_the_start(cloud, programs):
    cloud.conf_file.write_text(cloud.conf_file.read_text() + f'[metrics]\nlisten = 127.0.0.1:{free_port()}\n')
    program = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert program.wait() == 1
    assert (
        'the pipeline has no filter metrics, so nothing is counted: put it directly after request_id' in program.text()
    )


def test_the_metrics_say_whether_the_keeper_is_there(cloud, agent, programs, tmp_path):
    port = free_port()
    with_metrics(cloud, tmp_path, port)
    agent()
    (tmp_path / 'metrics').chmod(0o777)  # in tests the two programs may run as different users
    keeper = programs('metadata-wsgi', 'keeper', '--state-path', cloud.state_path)
    programs(
        'quantum-ns-metadata-proxy', '--nodaemonize', '--shared', f'--state_path={cloud.state_path}',
        f'--metrics_directory={tmp_path / "metrics"}',
    )  # fmt: skip
    keeper_up = 'metadata_wsgi_keeper_up{mode="shared"}'
    eventually(lambda: series(port).get(keeper_up) == '1.0', lambda: f'the keeper is there: {keeper.text()}')
    eventually(lambda: series(port).get('metadata_wsgi_attached{kind="router",mode="shared"}') == '0.0', 'reported')
    keeper.kill(signal.SIGKILL)
    eventually(lambda: series(port)[keeper_up] == '0.0', 'the keeper is away')


def test_the_metrics_address_is_served_while_the_program_is_replaced(cloud, agent, tmp_path):
    """SIGUSR1: the former workers have the port open until the new ones serve."""
    port = free_port()
    with_metrics(cloud, tmp_path, port)
    running = agent()
    former = running.workers()
    running.kill(signal.SIGUSR1)
    eventually(lambda: running.workers() and not set(former) & set(running.workers()), running.text, within_s=60)
    eventually(lambda: page(port)[0] == 200, running.text)
    assert running.process.poll() is None
