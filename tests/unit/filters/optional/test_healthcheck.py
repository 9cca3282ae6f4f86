# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi.filters.optional.healthcheck import HealthcheckFilter
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

SOURCE = {environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1')}
INSTANCE = {**SOURCE, environ_keys.INSTANCE: environ_keys.Instance('i1', 'p1', 'port1')}
SIGNED = {**INSTANCE, environ_keys.SIGNED_IDENTITY: environ_keys.SignedIdentity(None, '10.1.1.2', ('ab',))}


class Path:
    """A pipeline in which guests meet what they are told to."""

    def __init__(self):
        self.clock = FakeClock()
        self._facts, self._status = {}, 200
        self.app = webtest.TestApp(HealthcheckFilter(self._rest, clock=self.clock))

    def _rest(self, environ, start_response):
        environ.update(self._facts)
        start_response(f'{self._status} Said', [('Content-Type', 'text/plain'), ('Content-Length', '0')])
        return []

    def guest_meets(self, facts, status, path='/latest/'):
        self._facts, self._status = facts, status
        return self.app.get(path, headers={'X-Forwarded-For': '10.1.1.2'}, status=status)

    def health(self):
        response = self.app.get('/healthcheck', expect_errors=True)
        return response.status_int, response.text.splitlines()


def test_a_host_without_guests_is_healthy():
    assert Path().health() == (200, ['directory: not asked lately', 'nova: not asked lately'])


@pytest.mark.parametrize(
    ('facts', 'status', 'healthy', 'directory', 'nova'),
    [
        ({}, 400, 200, 'not asked lately', 'not asked lately'),
        (SOURCE, 404, 200, 'reachable, 2 s ago', 'not asked lately'),
        (SOURCE, 503, 503, 'not reachable, 2 s ago', 'not asked lately'),
        (INSTANCE, 429, 200, 'reachable, 2 s ago', 'not asked lately'),
        (SIGNED, 200, 200, 'reachable, 2 s ago', 'reachable, 2 s ago'),
        (SIGNED, 404, 200, 'reachable, 2 s ago', 'reachable, 2 s ago'),
        *((SIGNED, status, 503, 'reachable, 2 s ago', 'not reachable, 2 s ago') for status in (500, 502, 503, 504)),
    ],
)
def test_it_tells_what_the_last_guest_met(facts, status, healthy, directory, nova):
    path = Path()
    path.guest_meets(facts, status)
    path.clock.sleep(2)
    assert path.health() == (healthy, [f'directory: {directory}', f'nova: {nova}'])


def test_what_came_back_is_healthy_again():
    path = Path()
    path.guest_meets(SIGNED, 503)
    path.guest_meets(SIGNED, 200)
    assert path.health()[0] == 200


def test_a_minute_later_nothing_is_known():
    path = Path()
    path.guest_meets(SIGNED, 503)
    path.clock.sleep(61)
    assert path.health() == (200, ['directory: not asked lately', 'nova: not asked lately'])


def test_a_guest_does_not_reach_it():
    """Its request for the same path goes on, to Nova."""
    path = Path()
    assert path.guest_meets(SIGNED, 404, '/healthcheck').text == ''
