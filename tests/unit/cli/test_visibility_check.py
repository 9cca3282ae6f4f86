# SPDX-License-Identifier: Apache-2.0
"""What the agent logs at start about the visibility of ports."""

import logging

import pytest

from metadata_wsgi.cli import visibility_check
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.filters.catch_errors import CatchErrorsFilter
from metadata_wsgi.filters.instance import InstanceFilter
from metadata_wsgi.lookup.neutron import NeutronLookup
from metadata_wsgi.pipeline import paste_loader
from tests.cloud import Cloud
from tests.fakes import FakeClock, FakeLookup
from tests.unit.lookup.neutron.fakes import FakeApi, FakeAuthenticator, token

UNAVAILABLE = LookupUnavailable('no route')


def end(environ, start_response):
    raise NotImplementedError


@pytest.fixture
def check(caplog):
    """Checks a pipeline whose Neutron has these responses; returns (levels and texts logged, seconds slept)."""
    caplog.set_level(logging.INFO)

    def run(*outcomes, roles=('service',)):
        clock = FakeClock()
        directory = NeutronLookup(FakeApi(*outcomes, auth=FakeAuthenticator(token(roles=roles))), clock=clock)
        visibility_check.check(CatchErrorsFilter(InstanceFilter(end, lookup=directory)), sleep=clock.sleep)
        return [(record.levelname, record.getMessage()) for record in caplog.records], clock.slept

    return run


def test_a_role_that_sees_other_projects_is_one_line(check):
    ((level, text),), slept = check([{'id': 'p', 'project_id': 'another'}])
    assert (level, text) == ('INFO', 'Neutron at http://neutron shows ports of other projects; roles: service')
    assert slept == []


def test_a_role_that_sees_nothing_is_an_error_with_instructions(check):
    ((level, text),), slept = check([], roles=('member',))
    assert level == 'ERROR'
    assert text.startswith('No instance can be found, every request gets 503: Neutron shows no port of any other proj')
    assert text.endswith('give the user the role service (or admin) in its project')
    assert slept == []


def test_rejected_credentials_are_logged_once_without_retry(check):
    logged, slept = check(InstanceLookupError('Keystone rejects the credentials (401)'))
    assert logged == [
        ('ERROR', 'No instance can be found, every request gets 503: Keystone rejects the credentials (401)')
    ]
    assert slept == []


def test_an_unavailable_directory_is_retried_until_it_has_a_result(check):
    logged, slept = check(UNAVAILABLE, UNAVAILABLE, [{'id': 'p', 'project_id': 'another'}])
    assert [level for level, _ in logged] == ['WARNING', 'INFO']
    assert logged[0][1] == 'Cannot check yet whether the lookup directory shows every instance: no route'
    assert slept == [visibility_check.RETRY_INTERVAL_S] * 2


def test_a_directory_without_probe_is_not_checked(caplog):
    caplog.set_level(logging.INFO)
    visibility_check.check(InstanceFilter(end, lookup=FakeLookup()))
    visibility_check.check(end)
    assert caplog.records == []


def test_problems_of_nova_are_logged_as_errors(caplog, tmp_path):
    """The pipeline of the package, with a Nova that has another secret."""
    with Cloud(tmp_path) as cloud:
        cloud.configure(metadata_proxy_shared_secret='another')
        app = paste_loader.load(paste_loader.default_paste_file(), 'agent', {'config_file': str(cloud.conf_file)})
        visibility_check.check(app)
    (record,) = [record for record in caplog.records if record.levelname == 'ERROR']
    assert 'metadata_proxy_shared_secret in nova.conf differ' in record.getMessage()
