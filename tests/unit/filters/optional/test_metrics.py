# SPDX-License-Identifier: Apache-2.0
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
