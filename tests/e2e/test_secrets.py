# SPDX-License-Identifier: Apache-2.0
"""Secrets appear in no log, traceback or output, and a secret can be rotated without a failed request."""

import os
import pathlib
import signal
import subprocess

import pytest

from tests.cloud import SECRET, SHIPPED
from tests.e2e.conftest import BIN, UnixConnection, eventually, request
from tests.e2e.test_agent import GUEST, Load, send_request

NEW = 'the secret after this one'

FAULTY = """
class Faulty:
    REQUIRES = PROVIDES = frozenset()

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        shown = vars(self.app)
        raise RuntimeError(f"unexpected error at {environ['PATH_INFO']}")


def filter_factory(global_conf):
    return Faulty
"""


def paste_with(tmp_path, pipeline, monkeypatch):
    """Write the shipped paste file with a filter ``faulty`` in the ``pipeline`` of the agent; its path."""
    (tmp_path / 'faulty.py').write_text(FAULTY)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    paste = tmp_path / 'api-paste.ini'
    paste.write_text(
        SHIPPED.read_text().replace('header_source instance signature upstream', pipeline, 1)
        + '\n[filter:faulty]\nuse = call:faulty:filter_factory\n'
    )
    return paste


@pytest.mark.parametrize(
    'pipeline', ['header_source instance signature faulty upstream', 'header_source faulty instance signature upstream']
)
def test_no_secret_in_a_traceback(agent, cloud, tmp_path, monkeypatch, pipeline):
    cloud.configure(metadata_paste_config=paste_with(tmp_path, pipeline, monkeypatch), debug='true')
    program = agent()
    assert send_request(cloud)[0] == 503
    eventually(lambda: 'RuntimeError: unexpected error at /openstack' in program.text(), 'the log has the traceback')
    assert SECRET not in program.text()


def test_no_secret_in_the_message_about_a_configuration_parse_error(agent, programs, cloud):
    program = agent()
    cloud.conf_file.write_text(f'[DEFAULT]\nmetadata_proxy_shared_secret\n{SECRET}\n')
    program.kill(signal.SIGHUP)
    eventually(lambda: 'Not reloaded' in program.text(), 'the log has "Not reloaded"')
    second = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert second.wait() == 1
    assert 'not a configuration file' in second.text()
    assert SECRET not in program.text() + second.text()


def test_no_secret_in_output_of_metadata_wsgi(cloud):
    cloud.conf_file.chmod(0o640)
    for verb in (['check-config'], ['show-pipeline'], ['explain', '--router-id=router-a', '10.1.1.2', '--send']):
        argv = [BIN / 'metadata-wsgi', *verb, '--config-file', cloud.conf_file]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
    cloud.conf_file.chmod(0o644)
    done = subprocess.run(
        [BIN / 'metadata-wsgi', 'check-config', '--config-file', cloud.conf_file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f'chmod o-r {cloud.conf_file}' in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_world_readable_configuration_logs_a_warning(agent, cloud):
    cloud.conf_file.chmod(0o644)
    program = agent()
    assert f'{cloud.conf_file} contains a secret and every user can read it' in program.text()
    # The check must not run in the master: it would import modules before gevent patches them in the workers.
    assert 'MonkeyPatchWarning' not in program.text()


def test_no_core_file_is_written(agent):
    program = agent()
    for pid in (program.pid, *program.workers()):
        (line,) = [line for line in pathlib.Path(f'/proc/{pid}/limits').read_text().splitlines() if 'core file' in line]
        assert line.split()[4:6] == ['0', '0']


def test_secret_from_a_systemd_credential_file_signs(agent, cloud, tmp_path, monkeypatch):
    (tmp_path / 'metadata_proxy_shared_secret').write_text(SECRET + '\n')
    monkeypatch.setenv('CREDENTIALS_DIRECTORY', str(tmp_path))
    cloud.configure(metadata_proxy_shared_secret=None)
    agent()
    assert send_request(cloud)[0] == 200
    assert SECRET not in cloud.conf_file.read_text()


def test_secret_rotation_under_load_loses_no_request(agent, cloud):
    program = agent()
    with Load(lambda: send_request(cloud)) as load:

        def reload(**options):
            before, done = program.workers(), load.completed
            cloud.configure(**options)
            program.kill(signal.SIGHUP)
            eventually(lambda: not set(before) & set(program.workers()), 'the workers are new')
            eventually(lambda: load.completed > done + 20, 'requests are answered')

        reload(metadata_proxy_shared_secret=NEW, metadata_proxy_shared_secret_old=SECRET)
        eventually(lambda: 'accepts the old shared secret' in program.text(), 'Nova accepts the old secret')
        cloud.nova.secret = NEW.encode()
        eventually(lambda done=load.completed: load.completed > done + 20, 'requests are answered')
        reload(metadata_proxy_shared_secret=NEW)
    assert load.failures == []
    assert NEW not in program.text()
    assert SECRET not in program.text()


def test_post_body_is_sent_again_during_secret_rotation(agent, cloud):
    cloud.configure(metadata_proxy_shared_secret=NEW, metadata_proxy_shared_secret_old=SECRET)
    agent()
    response = request(UnixConnection(cloud.socket), 'POST', '/openstack/2013-04-04/password', GUEST, b'p' * 1000)
    assert response[0] == 200
    assert [len(seen['body']) for seen in cloud.nova.seen] == [1000, 1000]


def test_no_secret_in_environment_of_the_master(agent):
    environment = pathlib.Path(f'/proc/{agent().pid}/environ').read_bytes()
    assert os.fsencode(SECRET) not in environment
