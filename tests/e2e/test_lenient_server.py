# SPDX-License-Identifier: Apache-2.0
"""An operator's own gunicorn that accepts malformed requests: every request is answered 503, and the log says why."""

import pytest

from tests.cloud import SHIPPED
from tests.e2e.conftest import UnixConnection, accepts_connections, eventually, request

CLIENT_HEADERS = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}
LENIENT = (
    'gunicorn accepts malformed requests, so an instance could send requests as another one: its settings have {}; '
)
HEADER_MAP = 'header_map = dangerous instead of drop'


@pytest.fixture
def gunicorn(programs, tmp_path):
    """Starts gunicorn with these arguments; returns it and its socket when it serves."""

    def start(*arguments):
        path = tmp_path / 'by-hand'
        server = programs('gunicorn', '--bind', f'unix:{path}', *arguments)
        eventually(lambda: 'Booting worker' in server.text() and accepts_connections(path), server.text)
        return server, path

    return start


def paste_arguments(cloud):
    return '--paste', SHIPPED, '--paste-global', f'config_file={cloud.conf_file}'


def get(path):
    return request(UnixConnection(path), 'GET', '/', CLIENT_HEADERS)[0]


def assert_refuses_all_requests(server, path, cloud, settings):
    """Each is answered 503; one line in the log names the settings."""
    for _ in range(3):
        assert get(path) == 503
    assert server.text().count(LENIENT.format(settings)) == 1
    assert not cloud.nova.seen


@pytest.mark.parametrize('arguments', [[], ['--preload'], ['--worker-class', 'gthread']])
def test_a_strict_gunicorn_serves(gunicorn, cloud, arguments):
    _, path = gunicorn('--worker-class', 'gevent', *paste_arguments(cloud), *arguments)
    assert get(path) == 200


@pytest.mark.parametrize('more', [[], ['--preload'], ['--worker-class', 'gthread'], ['--worker-class', 'sync']])
def test_a_lenient_gunicorn_refuses_all_requests(gunicorn, cloud, more):
    started = gunicorn('--worker-class', 'gevent', *paste_arguments(cloud), '--header-map', 'dangerous', *more)
    assert_refuses_all_requests(*started, cloud, HEADER_MAP)


@pytest.mark.parametrize('more', [[], ['--preload']])
def test_a_gunicorn_with_a_lenient_settings_file_refuses_all_requests(gunicorn, cloud, tmp_path, more):
    file = tmp_path / 'gunicorn.conf.py'
    file.write_text('permit_obsolete_folding = True\nstrip_header_spaces = True\n')
    started = gunicorn(*paste_arguments(cloud), '--config', file, *more)
    settings = 'permit_obsolete_folding = True instead of False, strip_header_spaces = True instead of False'
    assert_refuses_all_requests(*started, cloud, settings)


def test_a_lenient_gunicorn_with_an_application_of_a_module_refuses_all_requests(gunicorn, cloud, tmp_path):
    """An operator's own module may load the paste file."""
    (tmp_path / 'own.py').write_text(
        'from paste.deploy import loadapp\n'
        f'application = loadapp("config:{SHIPPED}", global_conf={{"config_file": "{cloud.conf_file}"}})\n'
    )
    started = gunicorn('own:application', '--chdir', tmp_path, '--header-map', 'dangerous')
    assert_refuses_all_requests(*started, cloud, HEADER_MAP)


@pytest.mark.parametrize(('header_map', 'status'), [('drop', 200), ('dangerous', 503)])
def test_a_lenient_gunicorn_of_a_paste_server_section_refuses_all_requests(
    programs, cloud, tmp_path, header_map, status
):
    """There the pipeline is loaded before gunicorn starts."""
    path, program = tmp_path / 'by-hand', tmp_path / 'serve.py'
    program.write_text(
        'import sys\nsys.argv[1:] = []\n'
        'from gunicorn.app import pasterapp\n'
        'from paste.deploy import loadapp\n'
        f'app = loadapp("config:{SHIPPED}", global_conf={{"config_file": "{cloud.conf_file}"}})\n'
        f'pasterapp.serve(app, {{"__file__": "{SHIPPED}"}}, bind="unix:{path}", header_map="{header_map}")\n'
    )
    server = programs('python', program)
    eventually(lambda: server.process.poll() is not None or accepts_connections(path), server.text)
    assert get(path) == status
    assert len(cloud.nova.seen) == (status == 200)
    assert (LENIENT.format(HEADER_MAP) in server.text()) == (status == 503)
