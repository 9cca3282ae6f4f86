# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi status`` with and without a running agent."""

import os
import subprocess

from tests.cloud import SHIPPED

from .conftest import BIN, UnixConnection, eventually, rejects_unidentified_request, request

A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}


def status(cloud):
    """(exit code, output line by its first word, all of it)."""
    done = subprocess.run(
        [BIN / 'metadata-wsgi', 'status', '--config-file', cloud.conf_file], capture_output=True, text=True, check=False
    )
    assert done.stderr == ''
    return done.returncode, {line.partition(' ')[0]: line for line in done.stdout.splitlines()}, done.stdout


def test_status_without_agent(cloud):
    code, lines, _ = status(cloud)
    assert code == 1
    assert f'nothing listens at {cloud.socket} (No such file or directory): start the agent' in lines['agent']


def test_status_of_an_agent_without_healthcheck(cloud, agent):
    program = agent()
    _, lines, _ = status(cloud)
    assert f'pid {program.pid} serves {cloud.socket}; 1 workers: {program.workers()[0]}' in lines['agent']
    assert 'the agent responds; the filter healthcheck is not in its pipeline' in lines['health']
    if os.geteuid():
        assert lines['attached'].endswith('only root can read it')
    else:
        assert lines['keeper'].endswith('does not run; only the modes shared and one_hop need it')


def test_status_of_an_agent_with_healthcheck_before_and_after_nova_is_unavailable(cloud, tmp_path):
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(
        SHIPPED.read_text().replace(
            ' catch_errors request_id peer_credentials deadline',
            ' catch_errors request_id healthcheck peer_credentials deadline',
        )
    )
    log = tmp_path / 'agent.log'
    cloud.configure(api_paste_config=paste, answer_within=6, log_file=log)
    # It logs to the file, where the fixture "agent" does not look.
    program = subprocess.Popen([BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file])
    try:
        eventually(lambda: rejects_unidentified_request(cloud.socket), 'the agent has loaded its pipeline')
        assert request(UnixConnection(cloud.socket), 'GET', '/', A)[0] == 200
        _, lines, everything = status(cloud)
        assert 'directory: reachable' in lines['health']
        assert 'nova: reachable' in lines['health']
        assert 'Requests get 503' not in everything
        cloud.server.server_close()
        assert request(UnixConnection(cloud.socket), 'GET', '/', A)[0] == 503
        code, lines, everything = status(cloud)
        assert code == 1
        assert 'nova: not reachable' in lines['health']
        assert lines['faults'].endswith('agent.log: the last ones')
        assert 'Requests get 503: no response from Nova' in everything
    finally:
        program.terminate()
        program.wait(20)
