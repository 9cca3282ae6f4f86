# SPDX-License-Identifier: Apache-2.0
"""An operator's own gunicorn that mends malformed requests: it does not start, or answers nobody, and says why."""

import pytest

from tests.cloud import SHIPPED
from tests.e2e.conftest import UnixConnection, answers, eventually, request

GUEST = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
LENIENT = 'gunicorn mends malformed requests, by which a guest could pass for another: its settings have {}; '
HEADER_MAP = LENIENT.format('header_map = dangerous instead of drop')


@pytest.fixture
def gunicorn(programs, cloud, tmp_path):
    """Starts gunicorn with these arguments; returns it and its socket when it serves or has ended."""

    def start(*arguments):
        path = tmp_path / 'by-hand'
        server = programs('gunicorn', '--bind', f'unix:{path}', *arguments)
        eventually(
            lambda: server.process.poll() is not None or ('Booting worker' in server.text() and answers(path)),
            server.text,
        )
        return server, path

    return start


def pasted(cloud):
    return '--paste', SHIPPED, '--paste-global', f'config_file={cloud.conf_file}'


@pytest.mark.parametrize('arguments', [[], ['--preload'], ['--worker-class', 'gthread']])
def test_a_strict_one_serves(gunicorn, cloud, arguments):
    _, path = gunicorn('--worker-class', 'gevent', *pasted(cloud), *arguments)
    assert request(UnixConnection(path), 'GET', '/', GUEST)[0] == 200


@pytest.mark.parametrize('more', [[], ['--preload'], ['--worker-class', 'gthread'], ['--check-config']])
def test_a_lenient_one_does_not_start(gunicorn, cloud, more):
    server, _ = gunicorn('--worker-class', 'gevent', *pasted(cloud), '--header-map', 'dangerous', *more)
    assert server.wait() != 0
    assert HEADER_MAP in server.text()
    assert not cloud.nova.seen


@pytest.mark.parametrize('more', [[], ['--preload']])
def test_neither_does_one_that_a_file_makes_lenient(gunicorn, cloud, tmp_path, more):
    file = tmp_path / 'gunicorn.conf.py'
    file.write_text('permit_obsolete_folding = True\nstrip_header_spaces = True\n')
    server, _ = gunicorn(*pasted(cloud), '--config', file, *more)
    assert server.wait() != 0
    said = 'permit_obsolete_folding = True instead of False, strip_header_spaces = True instead of False'
    assert LENIENT.format(said) in server.text()


def test_neither_does_one_that_is_given_a_module(gunicorn, cloud, tmp_path):
    """It loads the paste file as an operator's own module may, and never hears of gunicorn's settings."""
    (tmp_path / 'own.py').write_text(
        'from paste.deploy import loadapp\n'
        f'application = loadapp("config:{SHIPPED}", global_conf={{"config_file": "{cloud.conf_file}"}})\n'
    )
    server, _ = gunicorn('own:application', '--chdir', tmp_path, '--header-map', 'dangerous')
    assert server.wait() != 0
    assert HEADER_MAP in server.text()


@pytest.mark.parametrize(('header_map', 'status'), [('drop', 200), ('dangerous', 503)])
def test_one_that_was_given_a_pipeline_serves_nobody(programs, cloud, tmp_path, header_map, status):
    """Loaded before there is a gunicorn, as a server section of a paste file is."""
    path, program = tmp_path / 'by-hand', tmp_path / 'serve.py'
    program.write_text(
        'import sys\nsys.argv[1:] = []\n'
        'from gunicorn.app import pasterapp\n'
        'from paste.deploy import loadapp\n'
        f'app = loadapp("config:{SHIPPED}", global_conf={{"config_file": "{cloud.conf_file}"}})\n'
        f'pasterapp.serve(app, {{"__file__": "{SHIPPED}"}}, bind="unix:{path}", header_map="{header_map}")\n'
    )
    server = programs('python', program)
    eventually(lambda: server.process.poll() is not None or answers(path), server.text)
    assert request(UnixConnection(path), 'GET', '/', GUEST)[0] == status
    assert len(cloud.nova.seen) == (status == 200)
    assert (f'Every request gets 503: {HEADER_MAP}' in server.text()) == (status == 503)
