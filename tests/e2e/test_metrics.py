# SPDX-License-Identifier: Apache-2.0
"""Two workers count; a separate gunicorn, started as the paste file says, serves the sum."""

import contextlib
import http.client
import re

from tests.cloud import SHIPPED

from .conftest import UnixConnection, eventually, free_port, request

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}


def page(port):
    try:
        return request(http.client.HTTPConnection('127.0.0.1', port, timeout=20), 'GET', '/metrics')
    except OSError:
        return 0, {}, b''


def test_metrics_of_two_workers_are_added_up(cloud, agent, programs, tmp_path):
    paste = tmp_path / 'api-paste.ini'
    text = SHIPPED.read_text().replace(
        ' catch_errors peer_credentials deadline', ' catch_errors metrics peer_credentials deadline'
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
