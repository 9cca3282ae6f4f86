# SPDX-License-Identifier: Apache-2.0
"""What the agent says at start of what the directory shows it."""

import logging

import pytest

from metadata_wsgi.cli import visibility_check
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.filters.catch_errors import CatchErrorsFilter
from metadata_wsgi.filters.instance import InstanceFilter
from metadata_wsgi.lookup.neutron import NeutronLookup
from tests.fakes import FakeClock, FakeLookup
from tests.unit.lookup.neutron.fakes import FakeAccess, FakeApi, grant

AWAY = LookupUnavailable('no route')


def end(environ, start_response):
    raise NotImplementedError


@pytest.fixture
def look(caplog):
    """Looks through a pipeline whose Quantum has these answers; returns (levels and texts said, seconds waited)."""
    caplog.set_level(logging.INFO)

    def run(*outcomes, roles=('service',)):
        clock = FakeClock()
        directory = NeutronLookup(FakeApi(*outcomes, access=FakeAccess(grant(roles=roles))), clock=clock)
        visibility_check.look(CatchErrorsFilter(InstanceFilter(end, lookup=directory)), sleep=clock.sleep)
        return [(record.levelname, record.getMessage()) for record in caplog.records], clock.slept

    return run


def test_a_role_that_sees_other_projects_is_one_line(look):
    ((level, text),), slept = look([{'id': 'p', 'project_id': 'another'}])
    assert (level, text) == ('INFO', 'Quantum at http://neutron shows ports of other projects; roles: service')
    assert slept == []


def test_a_role_that_sees_nothing_is_an_error_that_says_what_to_do(look):
    ((level, text),), slept = look([], roles=('member',))
    assert level == 'ERROR'
    assert text.startswith('No guest will be found, all will be answered 503: Quantum shows no port of any other proj')
    assert text.endswith('give the user the role service (or admin) in its project')
    assert slept == []


def test_a_refusal_is_said_once(look):
    said, slept = look(InstanceLookupError('Keystone refuses the credentials (401)'))
    assert said == [
        ('ERROR', 'No guest will be found, all will be answered 503: Keystone refuses the credentials (401)')
    ]
    assert slept == []


def test_one_that_is_away_is_asked_until_it_is_there(look):
    said, slept = look(AWAY, AWAY, [{'id': 'p', 'project_id': 'another'}])
    assert [level for level, _ in said] == ['WARNING', 'INFO']
    assert said[0][1] == 'Cannot find out yet whether the directory shows every guest: no route'
    assert slept == [visibility_check.AGAIN_S] * 2


def test_a_directory_that_always_sees_is_not_asked(caplog):
    caplog.set_level(logging.INFO)
    visibility_check.look(InstanceFilter(end, lookup=FakeLookup()))
    visibility_check.look(end)
    assert caplog.records == []
