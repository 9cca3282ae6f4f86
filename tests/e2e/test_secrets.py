# SPDX-License-Identifier: Apache-2.0
"""No secret is in anything that is said, whatever goes wrong; and a secret can be changed without an outage."""

import os
import pathlib
import signal
import subprocess

import pytest

from tests.cloud import SECRET, SHIPPED
from tests.e2e.conftest import BIN, UnixConnection, eventually, request
from tests.e2e.test_agent import GUEST, Load, ask

NEW = 'the secret after this one'

FAULTY = """
class Faulty:
    REQUIRES = PROVIDES = frozenset()

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        shown = vars(self.app)
        raise RuntimeError(f"nobody foresaw this {environ['PATH_INFO']}")


def filter_factory(global_conf):
    return Faulty
"""


def paste_with(tmp_path, pipeline, monkeypatch):
    """The shipped paste file with a filter that fails in the ``pipeline`` of the agent."""
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
def test_no_secret_is_in_a_traceback(agent, cloud, tmp_path, monkeypatch, pipeline):
    cloud.configure(api_paste_config=paste_with(tmp_path, pipeline, monkeypatch), debug='true')
    program = agent()
    assert ask(cloud)[0] == 503
    eventually(lambda: 'RuntimeError: nobody foresaw this /openstack' in program.text(), 'the log has the traceback')
    assert SECRET not in program.text()


def test_no_secret_is_said_of_a_file_that_cannot_be_parsed(agent, programs, cloud):
    program = agent()
    cloud.conf_file.write_text(f'[DEFAULT]\nmetadata_proxy_shared_secret\n{SECRET}\n')
    program.kill(signal.SIGHUP)
    eventually(lambda: 'Not reloaded' in program.text(), 'it says so')
    second = programs('quantum-metadata-agent', '--config-file', cloud.conf_file)
    assert second.wait() == 1
    assert 'not a configuration file' in second.text()
    assert SECRET not in program.text() + second.text()


def test_no_secret_is_in_what_the_tools_print(cloud):
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


def test_a_file_that_every_user_can_read_is_a_warning_at_the_start(agent, cloud):
    cloud.conf_file.chmod(0o644)
    program = agent()
    assert f'{cloud.conf_file} holds a secret and every user can read it' in program.text()
    # Not looked for in the master, where that would import what gevent has yet to change in the workers.
    assert 'MonkeyPatchWarning' not in program.text()


def test_no_core_file_is_written(agent):
    program = agent()
    for pid in (program.pid, *program.workers()):
        (line,) = [line for line in pathlib.Path(f'/proc/{pid}/limits').read_text().splitlines() if 'core file' in line]
        assert line.split()[4:6] == ['0', '0']


def test_the_secret_of_a_file_or_a_credential_signs(agent, cloud, tmp_path, monkeypatch):
    (tmp_path / 'metadata_proxy_shared_secret').write_text(SECRET + '\n')
    monkeypatch.setenv('CREDENTIALS_DIRECTORY', str(tmp_path))
    cloud.configure(metadata_proxy_shared_secret=None)
    agent()
    assert ask(cloud)[0] == 200
    assert SECRET not in cloud.conf_file.read_text()


def test_a_rotation_under_load_loses_no_request(agent, cloud):
    program = agent()
    with Load(lambda: ask(cloud)) as load:

        def reload(**options):
            before, done = program.workers(), load.done
            cloud.configure(**options)
            program.kill(signal.SIGHUP)
            eventually(lambda: not set(before) & set(program.workers()), 'the workers are new')
            eventually(lambda: load.done > done + 20, 'requests are answered')

        reload(metadata_proxy_shared_secret=NEW, metadata_proxy_shared_secret_old=SECRET)
        eventually(lambda: 'accepted the old one' in program.text(), 'Nova accepts the old one')
        cloud.nova.secret = NEW.encode()
        eventually(lambda done=load.done: load.done > done + 20, 'requests are answered')
        reload(metadata_proxy_shared_secret=NEW)
    assert load.failed == []
    assert NEW not in program.text()
    assert SECRET not in program.text()


def test_a_password_goes_through_a_rotation(agent, cloud):
    cloud.configure(metadata_proxy_shared_secret=NEW, metadata_proxy_shared_secret_old=SECRET)
    agent()
    said = request(UnixConnection(cloud.socket), 'POST', '/openstack/2013-04-04/password', GUEST, b'p' * 1000)
    assert said[0] == 200
    assert [len(seen['body']) for seen in cloud.nova.seen] == [1000, 1000]


def test_the_masters_environment_has_no_secret(agent):
    environment = pathlib.Path(f'/proc/{agent().pid}/environ').read_bytes()
    assert os.fsencode(SECRET) not in environment
