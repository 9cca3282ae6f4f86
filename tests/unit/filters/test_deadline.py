# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.filters.deadline import DeadlineFilter, filter_factory
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock


def remaining_s(environ, timeout_s=9.0):
    seen = {}
    DeadlineFilter(lambda e, s: seen.update(e), request_timeout_s=timeout_s, clock=FakeClock())(environ, None)
    assert 'HTTP_X_METADATA_REMAINING_MS' not in seen
    return seen[environ_keys.DEADLINE].remaining_s()


def test_the_deadline_is_the_request_timeout_from_now():
    assert remaining_s({}) == 9.0


@pytest.mark.parametrize(
    ('remaining_ms', 'expected_s'),
    [('2500', 2.5), ('0', 0.0), ('9000', 9.0), ('60000', 9.0), ('9' * 5000, 9.0)],
)
def test_the_namespace_proxy_can_only_shorten_the_deadline(remaining_ms, expected_s):
    assert remaining_s({'HTTP_X_METADATA_REMAINING_MS': remaining_ms}) == expected_s


def test_the_deadline_is_not_shortened_by_a_header_of_an_instance_in_mode_one_hop():
    """Such a request has no namespace proxy."""
    namespace = environ_keys.Namespace('r1', None)
    assert remaining_s({'HTTP_X_METADATA_REMAINING_MS': '1', environ_keys.NAMESPACE: namespace}) == 9.0


@pytest.mark.parametrize('remaining_ms', ['', '-1', '1e9', '1,2', 'soon', '²', '1.5'])
def test_an_invalid_remaining_time_is_ignored(remaining_ms):
    assert remaining_s({'HTTP_X_METADATA_REMAINING_MS': remaining_ms}) == 9.0


@pytest.mark.parametrize('option', ['request_timeout', 'answer_within'])
def test_the_factory_reads_the_request_timeout(tmp_path, option):
    path = tmp_path / 'agent.ini'
    path.write_text(f'[DEFAULT]\n{option} = 3.5\n')
    seen = {}
    filter_factory({'config_file': str(path)})(lambda e, s: seen.update(e))({}, None)
    assert seen[environ_keys.DEADLINE].remaining_s() == pytest.approx(3.5, abs=0.5)


def test_the_response_of_the_app_is_passed_on():
    def app(environ, start_response):
        start_response('204 No Content', [])
        return ['body']

    statuses = []
    body = DeadlineFilter(app, request_timeout_s=9.0)({}, lambda status, headers: statuses.append(status))
    assert (statuses, body) == (['204 No Content'], ['body'])
