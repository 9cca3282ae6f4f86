# SPDX-License-Identifier: Apache-2.0
import logging

import pytest

from metadata_wsgi.filters.optional.request_log import RequestLogFilter
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

FACTS = {
    environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1'),
    environ_keys.INSTANCE: environ_keys.Instance('i1', 'p1', 'port1'),
}


def logged(caplog, path='/latest/', facts=FACTS, method='GET', error=None):
    """The log line of a request that takes 12.5 ms."""
    clock = FakeClock()

    def rest(environ, start_response):
        environ.update(facts)
        clock.sleep(0.0125)
        if error:
            raise error
        start_response('200 OK', [])
        return []

    environ = {
        'REQUEST_METHOD': method, 'PATH_INFO': path, 'QUERY_STRING': 'query=secret', 'HTTP_COOKIE': 'secret',
        'HTTP_X_AWS_EC2_METADATA_TOKEN': 'secret',
    }  # fmt: skip
    with caplog.at_level(logging.INFO):
        if error:
            with pytest.raises(type(error)):
                RequestLogFilter(rest, clock=clock)(environ, lambda *args: None)
        else:
            RequestLogFilter(rest, clock=clock)(environ, lambda *args: None)
    (record,) = caplog.records
    return record.getMessage()


def test_the_line_has_client_instance_path_and_status(caplog):
    assert logged(caplog) == '10.1.1.2 behind router r1 instance i1 GET /latest/ 200 12.5 ms'


def test_a_request_without_source_and_instance(caplog):
    assert logged(caplog, facts={}) == 'nobody instance - GET /latest/ 200 12.5 ms'


def test_an_exception_is_logged_and_raised(caplog):
    assert logged(caplog, error=ValueError('broken')).endswith('GET /latest/ fault 12.5 ms')


@pytest.mark.parametrize('path', ['/a\nb', '/a\rb', '/a b', '/\x1b[31m', '/\x85', '/\xe2\x80\xa8', '/' + 'a' * 5000])
def test_no_request_looks_like_another_line(caplog, path):
    line = logged(caplog, path=path, method='GE\nT')
    assert line.isprintable()
    assert line.isascii()
    assert len(line.split()) == 11
    assert len(line) < 1000


def test_no_query_and_no_header_is_logged(caplog):
    assert 'secret' not in logged(caplog)
