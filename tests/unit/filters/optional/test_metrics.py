# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi import instruments
from metadata_wsgi.filters.optional.metrics import MetricsFilter
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

SOURCE = {environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1')}


@pytest.fixture
def seen():
    observed = []
    instruments.REQUEST_SECONDS.connect(lambda *args: observed.append(args))
    yield observed
    instruments.REQUEST_SECONDS.connect(None)


def request(facts, status='200 OK', error=None):
    clock = FakeClock()

    def rest(environ, start_response):
        environ.update(facts)
        clock.sleep(0.25)
        if error:
            raise error
        start_response(status, [])
        return []

    return MetricsFilter(rest, clock=clock)({}, lambda *args: None)


def test_each_request_is_observed_once_with_its_stage_status_and_time(seen):
    request({}, '400 Bad Request')
    request(SOURCE, '404 Not Found')
    assert seen == [(0.25, 'unidentified', '400'), (0.25, 'source', '404')]


def test_an_exception_is_observed_and_raised(seen):
    with pytest.raises(ValueError):
        request(SOURCE, error=ValueError())
    assert seen == [(0.25, 'source', 'fault')]
