# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.filters.optional.healthcheck import HealthcheckFilter
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

SOURCE = {environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1')}
INSTANCE = {**SOURCE, environ_keys.INSTANCE: environ_keys.Instance('i1', 'p1', 'port1')}
SIGNED = {**INSTANCE, environ_keys.SIGNED_IDENTITY: environ_keys.SignedIdentity(None, '10.1.1.2', ('ab',))}


class Pipeline:
    """A pipeline whose requests get the given environ keys and status."""

    def __init__(self, **options):
        self.clock = FakeClock()
        self._facts, self._status = {}, 200
        self.app = webtest.TestApp(HealthcheckFilter(self._rest, clock=self.clock, **options))

    def _rest(self, environ, start_response):
        environ.update(self._facts)
        start_response(f'{self._status} Status', [('Content-Type', 'text/plain'), ('Content-Length', '0')])
        return []

    def request(self, facts, status, path='/latest/'):
        self._facts, self._status = facts, status
        return self.app.get(path, headers={'X-Forwarded-For': '10.1.1.2'}, status=status)

    def health(self):
        response = self.app.get('/healthcheck', expect_errors=True)
        return response.status_int, response.text.splitlines()


def test_a_host_without_requests_is_healthy():
    assert Pipeline().health() == (200, ['OK', 'directory: not used lately', 'nova: not used lately'])


@pytest.mark.parametrize(
    ('facts', 'status', 'healthy', 'directory', 'nova'),
    [
        ({}, 400, 200, 'not used lately', 'not used lately'),
        (SOURCE, 404, 200, 'reachable, 2 s ago', 'not used lately'),
        (SOURCE, 503, 503, 'not reachable, 2 s ago', 'not used lately'),
        (INSTANCE, 429, 200, 'reachable, 2 s ago', 'not used lately'),
        # Responses of rate_limit before instance, and of upstream itself: nothing was sent to the lookup or to Nova.
        (SOURCE, 429, 200, 'not used lately', 'not used lately'),
        (SOURCE, 400, 200, 'not used lately', 'not used lately'),
        *((SIGNED, status, 200, 'reachable, 2 s ago', 'not used lately') for status in (400, 408, 413)),
        (SIGNED, 200, 200, 'reachable, 2 s ago', 'reachable, 2 s ago'),
        (SIGNED, 404, 200, 'reachable, 2 s ago', 'reachable, 2 s ago'),
        *((SIGNED, status, 503, 'reachable, 2 s ago', 'not reachable, 2 s ago') for status in (500, 502, 503, 504)),
    ],
)
def test_it_reports_the_result_of_the_last_request(facts, status, healthy, directory, nova):
    pipeline = Pipeline()
    pipeline.request(facts, status)
    pipeline.clock.sleep(2)
    code, (*reasons, lookup_line, nova_line) = pipeline.health()
    assert (code, lookup_line, nova_line) == (healthy, f'directory: {directory}', f'nova: {nova}')
    assert (reasons == ['OK']) == (healthy == 200)


NOT_SHOWN = {
    **SOURCE,
    environ_keys.FAILURE: environ_keys.Failure(503, 'the lookup failed: no port of router r1', is_of_source=True),
}


def test_a_router_that_neutron_does_not_show_does_not_make_the_directory_unreachable():
    """It exists on the host, and its instances send requests all the time. All other lookups succeed."""
    pipeline = Pipeline()
    pipeline.request(INSTANCE, 200)
    pipeline.request(NOT_SHOWN, 503)
    assert pipeline.health()[0] == 200


def test_the_directory_is_unreachable_if_neutron_shows_no_router_of_the_host():
    """For example because auth_region names another region: no lookup succeeds."""
    pipeline = Pipeline()
    pipeline.request(INSTANCE, 200)
    pipeline.clock.sleep(61)
    for _ in range(2):
        pipeline.request(NOT_SHOWN, 503)
        assert pipeline.health()[0] == 503


@pytest.mark.parametrize('facts', [SOURCE, SIGNED], ids=['directory', 'nova'])
@pytest.mark.parametrize(('had_s', 'code'), [(limits.CIRCUIT_MIN_TIME_S, 503), (0.9, 200)])
def test_the_failure_of_a_request_with_too_little_time_does_not_count(facts, had_s, code):
    """A client may shorten the deadline of its own request."""
    pipeline = Pipeline()
    pipeline.request({**facts, environ_keys.DEADLINE: Deadline.after(had_s, pipeline.clock)}, 503)
    assert pipeline.health()[0] == code


def test_a_success_after_a_failure_is_healthy():
    pipeline = Pipeline()
    pipeline.request(SIGNED, 503)
    pipeline.request(SIGNED, 200)
    assert pipeline.health()[0] == 200


def test_results_are_stale_after_a_minute():
    pipeline = Pipeline()
    pipeline.request(SIGNED, 503)
    pipeline.clock.sleep(61)
    assert pipeline.health() == (200, ['OK', 'directory: not used lately', 'nova: not used lately'])


def test_a_request_of_an_instance_passes():
    """A request of an instance for the same path goes to Nova."""
    pipeline = Pipeline()
    assert pipeline.request(SIGNED, 404, '/healthcheck').text == ''


def test_json_as_oslo_middleware_has_it():
    pipeline = Pipeline(detailed=False)
    response = pipeline.app.get('/healthcheck', headers={'Accept': 'application/json'})
    assert (response.content_type, response.json) == ('application/json', {'detailed': False, 'reasons': ['OK', 'OK']})
    pipeline.request(SIGNED, 503)
    response = pipeline.app.get('/healthcheck', headers={'Accept': 'application/json'}, status=503)
    assert response.json['reasons'] == ['OK', 'NOVA NOT REACHABLE']


def test_detailed_json_has_class_reason_and_details():
    response = Pipeline().app.get('/healthcheck', headers={'Accept': 'application/json'})
    assert response.json['detailed'] is True
    assert response.json['reasons'][1] == {'class': 'nova', 'details': 'not used lately', 'reason': 'OK'}
    assert {'now', 'platform', 'python_version'} < set(response.json)


@pytest.mark.parametrize('accept', ['text/plain', '*/*', 'image/png', 'text/html', ''])
def test_any_other_type_is_plain_text(accept):
    response = Pipeline(detailed=False).app.get('/healthcheck', headers={'Accept': accept})
    assert (response.content_type, response.text) == ('text/plain', 'OK\n')


def test_head_is_204_or_503(tmp_path):
    pipeline = Pipeline(disable_by_file_path=str(tmp_path / 'drained'))
    pipeline.app.head('/healthcheck', status=204)
    (tmp_path / 'drained').touch()
    assert pipeline.app.head('/healthcheck', status=503).content_type == 'text/plain'
    pipeline.app.head('/healthcheck/live', status=204)


def test_enable_by_files_needs_all_files(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b']
    pipeline = Pipeline(enable_by_file_paths=tuple(map(str, paths)))
    paths[0].touch()
    assert pipeline.health()[0] == 503
    assert pipeline.health()[1][:2] == ['FILE PATH MISSING', f"enable_by_files: Path '{paths[0]}' was found"]
    paths[1].touch()
    assert pipeline.health()[0] == 200


def test_the_path_is_an_option():
    pipeline = Pipeline(path='/ready')
    pipeline.app.get('/ready', status=200)
    pipeline.app.get('/ready/live', status=200)
    assert pipeline.app.get('/healthcheck').text == ''
