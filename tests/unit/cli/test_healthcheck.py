# SPDX-License-Identifier: Apache-2.0
"""The keeper's side of ``metadata-wsgi healthcheck``; ``tests/e2e/test_healthcheck.py`` has the agent's."""

from pathlib import Path

import pytest

from metadata_wsgi.cli import healthcheck, main
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


def test_healthcheck_with_neutron_looks_at_the_socket_of_neutron_metadata_agent_wsgi(tmp_path, capsys):
    conf_file = tmp_path / 'neutron.conf'
    conf_file.write_text('[DEFAULT]\ncore_plugin = ml2\n')
    for program, path in (('agent', '/var/lib/neutron/metadata_proxy'), ('keeper', '/var/lib/neutron/keeper')):
        assert main.main(['healthcheck', program, '--live', '--neutron', '--config-file', str(conf_file)]) == 1
        assert f' at {path}' in capsys.readouterr().out


def test_healthcheck_with_the_files_of_openstack_helm_looks_at_the_socket_of_the_chart(tmp_path, capsys):
    """The chart sets the socket in metadata_agent.ini; the agent's defaults do not count."""
    for name in ('neutron.conf', 'metadata_agent.ini'):
        text = (Path(__file__).parent / 'deployers' / 'openstack_helm' / name).read_text()
        (tmp_path / name).write_text(text.replace('@STATE@', str(tmp_path)))
    files = [f'--config-file={tmp_path}/{name}' for name in ('neutron.conf', 'metadata_agent.ini')]
    assert main.main(['healthcheck', '--live', '--neutron', *files]) == 1
    assert f'no response at {tmp_path}/openstack-helm/metadata_proxy: ' in capsys.readouterr().out
