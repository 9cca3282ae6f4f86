# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock


def test_a_deadline_is_spent_by_the_clock():
    clock = FakeClock()
    deadline = Deadline.after(9.0, clock)
    clock.sleep(2.5)
    assert deadline.remaining_s() == 6.5
    clock.sleep(100)
    assert deadline.remaining_s() == 0.0


@given(st.floats(0, 1e6), st.floats(0, 1), st.floats(0, 1e6))
def test_a_share_is_never_later_than_the_whole(within_s, part, passed_s):
    clock = FakeClock()
    deadline = Deadline.after(within_s, clock)
    clock.sleep(passed_s)
    share = deadline.share(part)
    assert share.remaining_s() <= deadline.remaining_s()
    assert share.clock is clock


def test_two_thirds_of_nine_seconds_are_six():
    assert Deadline.after(9.0, FakeClock()).share(2 / 3).remaining_s() == pytest.approx(6.0)


def test_facts_cannot_be_changed():
    source = environ_keys.Source('10.1.1.2', router_id='r')
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.address = '10.1.1.3'


def test_a_source_reads_well_in_a_log():
    assert str(environ_keys.Source('10.1.1.2', router_id='r1')) == '10.1.1.2 behind router r1'
    assert str(environ_keys.Source('10.1.1.2', network_id='n1')) == '10.1.1.2 behind network n1'


def test_facts_read_as_an_operator_says_them():
    assert str(environ_keys.Source('10.1.1.2', network_id='n')) == '10.1.1.2 behind network n'
    assert str(environ_keys.Instance('i', 'p', 'q', 1.0)) == 'i of project p, port q'
