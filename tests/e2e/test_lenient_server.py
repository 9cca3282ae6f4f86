# SPDX-License-Identifier: Apache-2.0
"""An operator's own gunicorn that mends malformed requests: it answers nobody, and says why."""

import pytest

from tests.cloud import SHIPPED
from tests.e2e.conftest import UnixConnection, answers, eventually, request

GUEST = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}


@pytest.mark.parametrize('worker_class', ['gevent', 'gthread'])
@pytest.mark.parametrize(
    ('switches', 'status'),
    [([], 200), (['--header-map', 'dangerous'], 503), (['--permit-obsolete-folding', '--strip-header-spaces'], 503)],
)
def test_it_serves_nobody(programs, cloud, tmp_path, worker_class, switches, status):
    path = tmp_path / 'by-hand'
    server = programs(
        'gunicorn', '--paste', SHIPPED, '--paste-global', f'config_file={cloud.conf_file}', '--bind', f'unix:{path}',
        '--worker-class', worker_class, *switches,
    )  # fmt: skip
    eventually(lambda: server.process.poll() is not None or answers(path), 'gunicorn listens')
    assert request(UnixConnection(path), 'GET', '/', GUEST)[0] == status
    assert len(cloud.nova.seen) == (status == 200)
    said = 'gunicorn mends malformed requests (' + ', '.join(
        f'{switch.strip("-").replace("-", "_")} = True' for switch in switches if switch.startswith('--p')
    )
    assert (said in server.text()) == (status != 200)
