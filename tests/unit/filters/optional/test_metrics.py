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

    counting = MetricsFilter(rest, observe=lambda *words: seen.append(words), clock=clock)
    if error:
        with pytest.raises(type(error)):
            counting({}, lambda *words: None)
    else:
        counting({}, lambda *words: None)
    return seen


def test_each_request_is_told_once_with_how_far_it_came_its_status_and_its_time():
    assert observed({}, '400 Bad Request') == [('unidentified', '400', 0.25)]
    assert observed(SOURCE, '404 Not Found') == [('source', '404', 0.25)]


def test_a_fault_is_told_and_goes_on():
    assert observed(SOURCE, error=ValueError()) == [('source', 'fault', 0.25)]


def test_the_page_is_at_one_path_only():
    app = webtest.TestApp(MetricsPage(lambda: b'a 1.0\n'))
    assert app.get('/metrics').text == 'a 1.0\n'
    app.get('/', status=404)


@pytest.mark.parametrize('factory', [filter_factory, app_factory])
def test_a_directory_that_cannot_be_made_stops_the_start(tmp_path, factory):
    (tmp_path / 'file').write_text('')
    path = tmp_path / 'agent.ini'
    path.write_text(f'[metrics]\ndirectory = {tmp_path}/file/metrics\n')
    with pytest.raises(ConfigError, match=r'in \[metrics\] cannot be made: Not a directory'):
        factory({'config_file': str(path)})


def test_what_cannot_be_counted_is_answered_all_the_same(caplog):
    def full(*words):
        raise OSError('disk full')

    def rest(environ, start_response):
        start_response('200 OK', [])
        return [b'answer']

    counting = MetricsFilter(rest, observe=full)
    assert [counting({}, lambda *words: None) for _ in range(3)] == [[b'answer']] * 3
    assert [record.getMessage() for record in caplog.records] == ['Requests are not counted: disk full']
