# SPDX-License-Identifier: Apache-2.0
"""The limit under the real server: gevent workers, one with counters of its own and two with a store between them."""

import subprocess

import pytest

from tests.cloud import SHIPPED
from tests.unit.filters.optional.test_rate_limit import store

from .conftest import UnixConnection, eventually, free_port, request
from .long_store_timeouts import with_long_store_timeouts

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
B = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-b'}


def statuses(cloud, headers, count):
    return [request(UnixConnection(cloud.socket), 'GET', '/', headers)[0] for _ in range(count)]


@pytest.mark.parametrize(('program', 'workers'), [('memory', 1), ('redis-server', 2), ('memcached', 2)])
def test_rate_limit_counts_for_all_workers_together(cloud, agent, tmp_path, program, workers):
    port = free_port()
    url, started = store(program, port)
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text().replace(' instance signature', ' instance rate_limit signature'))
    with_long_store_timeouts(paste)
    cloud.configure(api_paste_config=paste, metadata_workers=workers)
    with cloud.conf_file.open('a') as file:
        file.write(f'[rate_limit]\nboots_per_minute = 2\nstorage_url = {url}\n')
    try:
        if started:
            eventually(lambda: _listens(port), f'{program} listens')
        running = agent()
        assert statuses(cloud, A, 56) == [200] * 56
        # Every later request is refused; only a little of the window has passed.
        assert 429 in statuses(cloud, A, 56), running.text()
        assert statuses(cloud, B, 1) == [200]
        if started:
            started.kill()
            started.wait()
            assert statuses(cloud, A, 20) == [200] * 20
            assert running.text().count('is unavailable, so all requests pass') in range(1, workers + 1)
    finally:
        if started:
            started.kill()
            started.wait()


def _listens(port):
    return f':{port} ' in subprocess.run(['ss', '-Hltn'], capture_output=True, text=True, check=True).stdout
