# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.optional.metrics import MetricsFilter, MetricsPage, app_factory, filter_factory
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

SOURCE = {environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1')}


def observed(facts, status='200 OK', error=None):
    clock, seen = FakeClock(), []

    def rest(environ, start_response):
        environ.update(facts)
        clock.sleep(0.25)
        if error:
            raise error
        start_response(status, [])
        return []

    filter_ = MetricsFilter(rest, observe=lambda *args: seen.append(args), clock=clock)
    if error:
        with pytest.raises(type(error)):
            filter_({}, lambda *args: None)
    else:
        filter_({}, lambda *args: None)
    return seen


def test_each_request_is_observed_once_with_its_stage_status_and_time():
    assert observed({}, '400 Bad Request') == [('unidentified', '400', 0.25)]
    assert observed(SOURCE, '404 Not Found') == [('source', '404', 0.25)]


def test_an_exception_is_observed_and_raised():
    assert observed(SOURCE, error=ValueError()) == [('source', 'fault', 0.25)]


def test_the_metrics_page_has_one_path():
    app = webtest.TestApp(MetricsPage(lambda: b'a 1.0\n'))
    assert app.get('/metrics').text == 'a 1.0\n'
    app.get('/', status=404)


@pytest.mark.parametrize('factory', [filter_factory, app_factory])
def test_a_directory_that_cannot_be_created_stops_the_start(tmp_path, factory):
    (tmp_path / 'file').write_text('')
    path = tmp_path / 'agent.ini'
    path.write_text(f'[metrics]\ndirectory = {tmp_path}/file/metrics\n')
    with pytest.raises(ConfigError, match=r'in \[metrics\] cannot be made: Not a directory'):
        factory({'config_file': str(path)})


def test_a_request_that_cannot_be_counted_gets_its_response(caplog):
    def observe(*args):
        raise OSError('disk observe')

    def rest(environ, start_response):
        start_response('200 OK', [])
        return [b'answer']

    filter_ = MetricsFilter(rest, observe=observe)
    assert [filter_({}, lambda *args: None) for _ in range(3)] == [[b'answer']] * 3
    assert [record.getMessage() for record in caplog.records] == ['Requests are not counted: disk observe']


LOAD = """if True:
    import sys
    from metadata_wsgi.filters.optional.metrics import filter_factory
    def inner(environ, start_response):
        start_response('200 OK', [])
        return []
    app = filter_factory({'config_file': sys.argv[1]})(inner)
    if 'count' in sys.argv:
        app({}, lambda *args: None)
    print('loaded', flush=True)
    if 'wait' in sys.argv:
        sys.stdin.read()
"""


@pytest.fixture
def load(tmp_path):
    """Loads the filter in a process of its own, as a worker or ``check-config`` does. Returns the process."""
    path = tmp_path / 'agent.ini'
    path.write_text(f'[metrics]\ndirectory = {tmp_path}/metrics\n')
    started = []

    def run(*words):
        argv = [sys.executable, '-W', 'ignore', '-c', LOAD, path, *words]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == 'loaded\n'
        if 'wait' not in words:
            process.communicate(timeout=60)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.communicate(timeout=60)


def files(tmp_path):
    return {path.name for path in (tmp_path / 'metrics').glob('*.db')}


def test_files_of_ended_processes_without_counts_are_removed(load, tmp_path):
    """check-config and the check before a reload load the filter, and count nothing."""
    for _ in range(3):
        load()
    last = load('wait')
    assert files(tmp_path) == {f'histogram_{last.pid}.db'}


def test_files_of_running_processes_and_those_with_counts_stay(load, tmp_path):
    counted, running = load('count'), load('wait')
    last = load()
    assert files(tmp_path) == {f'histogram_{process.pid}.db' for process in (counted, running, last)}
    page = webtest.TestApp(app_factory({'config_file': str(tmp_path / 'agent.ini')})).get('/metrics').text
    assert 'metadata_wsgi_request_seconds_count{reached="unidentified",status="200"} 1.0' in page


def test_a_file_that_is_not_a_counter_file_does_not_stop_the_start(load, tmp_path):
    (tmp_path / 'metrics').mkdir()
    (tmp_path / 'metrics' / 'histogram_1.db').write_bytes(b'odd')
    (tmp_path / 'metrics' / 'histogram_2.db').symlink_to('/dev/zero')
    (tmp_path / 'metrics' / 'histogram_3.db').mkdir()
    load()
    assert {'histogram_1.db', 'histogram_2.db', 'histogram_3.db'} < files(tmp_path)
