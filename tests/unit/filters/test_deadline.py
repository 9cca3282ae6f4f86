# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.filters.deadline import DeadlineFilter, filter_factory
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock


def remaining_s(environ, within_s=9.0):
    seen = {}
    DeadlineFilter(lambda e, s: seen.update(e), answer_within_s=within_s, clock=FakeClock())(environ, None)
    assert 'HTTP_X_METADATA_REMAINING_MS' not in seen
    return seen[environ_keys.DEADLINE].remaining_s()


def test_nine_seconds_from_now():
    assert remaining_s({}) == 9.0


@pytest.mark.parametrize(
    ('left', 'expected_s'),
    [('2500', 2.5), ('0', 0.0), ('9000', 9.0), ('60000', 9.0), ('9' * 5000, 9.0)],
)
def test_the_namespace_proxy_can_only_shorten_it(left, expected_s):
    assert remaining_s({'HTTP_X_METADATA_REMAINING_MS': left}) == expected_s


@pytest.mark.parametrize('left', ['', '-1', '1e9', '1,2', 'soon', '²', '1.5'])
def test_what_is_no_number_counts_as_unsaid(left):
    assert remaining_s({'HTTP_X_METADATA_REMAINING_MS': left}) == 9.0


def test_the_factory_reads_answer_within(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\nanswer_within = 3.5\n')
    seen = {}
    filter_factory({'config_file': str(path)})(lambda e, s: seen.update(e))({}, None)
    assert seen[environ_keys.DEADLINE].remaining_s() == pytest.approx(3.5, abs=0.5)
