# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi healthcheck`` with a running agent, and a running keeper."""

import subprocess

from tests.cloud import SHIPPED

from .conftest import BIN, eventually


def healthcheck(*words):
    """(exit code, lines of the output)."""
    done = subprocess.run([BIN / 'metadata-wsgi', 'healthcheck', *map(str, words)], capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_healthcheck_of_an_agent(cloud, agent, tmp_path):
    words = ('agent', '--config-file', cloud.conf_file)
    code, lines = healthcheck(*words)
    assert (code, lines[0].startswith('no response at ')) == (1, True)
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(SHIPPED.read_text().replace(' request_id peer', ' request_id healthcheck peer'))
    cloud.configure(metadata_paste_config=paste)
    more = f'[healthcheck]\ndisable_by_file_path = {tmp_path / "drained"}\n'
    cloud.conf_file.write_text(cloud.conf_file.read_text() + more)
    agent()
    # On a busy machine a response may take longer than the timeout of the program.
    eventually(lambda: healthcheck(*words)[1][0] == 'OK', 'healthy')
    (tmp_path / 'drained').touch()
    code, lines = healthcheck(*words)
    assert (code, lines[0]) == (1, 'DISABLED BY FILE')
    assert healthcheck(*words, '--live')[0] == 0


def test_healthcheck_of_a_keeper(programs, tmp_path):
    words = ('keeper', '--state-path', tmp_path)
    assert healthcheck(*words)[0] == 1
    keeper = programs('metadata-wsgi', 'keeper', '--state-path', tmp_path)
    eventually(lambda: healthcheck(*words)[0] == 0, keeper.text)
    assert healthcheck(*words, '--live') == (0, ['OK', '0 listeners; workers: none'])
