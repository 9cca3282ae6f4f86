# SPDX-License-Identifier: Apache-2.0
"""The keeper's side of ``metadata-wsgi healthcheck``; ``tests/e2e/test_healthcheck.py`` has the agent's."""

import pytest

from metadata_wsgi.cli import healthcheck
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.protocol import Listener
from tests.unit.keeper.test_server import FakeOpener, Running


@pytest.fixture
def keeper(tmp_path):
    started = Running(tmp_path, opener=FakeOpener())
    yield started
    started.close()


def test_a_keeper_whose_listeners_no_worker_serves_is_alive_and_not_ready(keeper):
    assert healthcheck.keeper(keeper.state_path, live=False) == (True, 'OK\n0 listeners; workers: none')
    with admin_client.connect(keeper.state_path) as client:
        client.register(Listener('shared', 'any', 9697, router_id='r1', host='127.0.0.1'))
    is_ready, text = healthcheck.keeper(keeper.state_path, live=False)
    assert (is_ready, text.splitlines()[-1]) == (False, '1 listeners; workers: none')
    assert text.startswith('no worker serves the sockets of mode shared')
    assert healthcheck.keeper(keeper.state_path, live=True)[0]


def test_a_keeper_that_is_away_is_neither_alive_nor_ready(tmp_path):
    for live in (True, False):
        is_well, text = healthcheck.keeper(str(tmp_path), live=live)
        assert (is_well, text.startswith('no keeper listens at ')) == (False, True)
