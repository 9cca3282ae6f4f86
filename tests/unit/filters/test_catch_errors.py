# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.catch_errors import CatchErrorsFilter, filter_factory
from metadata_wsgi.pipeline import environ_keys


def broken(environ, start_response):
    raise RuntimeError('something with pipes')


broken.REQUIRES = frozenset()


def test_a_response_is_unchanged():
    def app(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '2')])
        return [b'ok']

    assert webtest.TestApp(CatchErrorsFilter(app)).get('/').body == b'ok'


def test_an_unexpected_exception_is_a_503_and_a_traceback_in_the_log(caplog):
    """cloud-init gives up after 500."""
    response = webtest.TestApp(CatchErrorsFilter(broken)).get('/', headers={'X-Secret': 'hunter2'}, status=503)
    assert response.headers['Retry-After'] == '1'
    assert 'something with pipes' not in response.text
    assert 'RuntimeError: something with pipes' in caplog.text
    assert 'hunter2' not in caplog.text


def test_a_status_that_is_not_sent_yet_is_replaced():
    """PEP 3333: with exc_info only."""

    def half_way(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain')])
        raise RuntimeError

    webtest.TestApp(CatchErrorsFilter(half_way)).get('/', status=503)


def test_a_filter_order_that_cannot_work_stops_the_start():
    """Whichever server loads the pipeline: the outermost filter is built last."""

    def app(environ, start_response):
        raise NotImplementedError

    app.REQUIRES = frozenset({environ_keys.SOURCE})
    with pytest.raises(ConfigError, match=r'app reads metadata_wsgi\.source, which no filter before it writes'):
        filter_factory({})(app)


def test_the_log_of_one_exception_is_throttled_and_hides_no_other(caplog):
    def app(environ, start_response):
        if environ['PATH_INFO'] == '/a':
            raise RuntimeError('first place')
        if environ['PATH_INFO'] == '/b':
            raise RuntimeError('second place')
        return [b''][int(environ['PATH_INFO'][1:])]

    pipeline = webtest.TestApp(CatchErrorsFilter(app))
    for path in ('/a', '/a', '/b', '/a', '/1', '/2', '/b'):
        pipeline.get(path, status=503)
    assert [str(record.exc_info[1]) for record in caplog.records] == [
        'first place', 'second place', 'list index out of range',
    ]  # fmt: skip


def test_the_status_of_an_exception_is_sent_with_exc_info():
    """PEP 3333: only with it a server replaces the status that an app has set before it failed."""
    seen = []
    CatchErrorsFilter(broken)({'REQUEST_METHOD': 'GET'}, lambda *arguments: seen.append(arguments))
    ((status, _, exc_info),) = seen
    assert (status, exc_info[0]) == ('503 Service Unavailable', RuntimeError)
