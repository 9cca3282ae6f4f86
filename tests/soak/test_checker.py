# SPDX-License-Identifier: Apache-2.0
"""The history checker accepts every history of a cache that keeps its bound, and finds each response that breaks it."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.load import OK, RETRY_AFTER
from tests.soak import history
from tests.soak.checker import NOT_FOUND, Bounds, check
from tests.soak.history import Assignment, FaultWindow, History, Recorder, Request
from tests.soak.shrink import describe, shrink

BOUNDS = Bounds(fresh_s=10.0, stale_s=60.0, after_outage_s=5.0)
PLACES = [(router, address) for router in ('red', 'blue') for address in ('10.1.1.2', '10.1.1.3')]
PLACE = PLACES[0]
END_S = 500.0


def assigned(at_s, instance_id, place=PLACE):
    return Assignment(at_s, at_s + 0.1, place, instance_id)


def owner(assignments, place, at_s):
    """The instance that has a place at a time."""
    past = [one for one in sorted(assignments) if one.place == place and one.ended_s <= at_s]
    return past[-1].instance_id if past else ''


@st.composite
def correct_histories(draw):
    """What a cache with a random age within the bound responds; an instance never has two places."""
    seed = draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    outages = [
        FaultWindow(at_s, at_s + rng.uniform(1, 30), 'Neutron down', stops_lookups=True, outcomes=(RETRY_AFTER,))
        for at_s in draw(st.lists(st.floats(50, END_S), max_size=3))
    ]
    assignments, number = [], 0
    for place in PLACES:
        for at_s in sorted([0.0, *draw(st.lists(st.floats(1, END_S), max_size=8))]):
            number += 1
            assignments.append(assigned(at_s, f'instance-{number}' if rng.random() < 0.8 else '', place))
    requests = []
    for _ in range(draw(st.integers(1, 60))):
        place, started_s = rng.choice(PLACES), rng.uniform(1, END_S)
        ended_s = started_s + rng.uniform(0.001, 9)
        is_impossible = any(one.began_s <= started_s <= one.ended_s for one in outages)
        if is_impossible and rng.random() < 0.3:
            requests.append(Request(started_s, ended_s, place, RETRY_AFTER))
            continue
        age_s = rng.uniform(0, BOUNDS.stale_s if is_impossible else BOUNDS.fresh_s)
        found = owner(assignments, place, max(0.1, rng.uniform(started_s, ended_s) - age_s))
        requests.append(Request(started_s, ended_s, place, OK if found else NOT_FOUND, found))
    return History(requests, assignments, outages)


@settings(deadline=None)
@given(correct_histories())
def test_a_cache_within_its_bound_breaks_nothing(correct):
    assert check(correct, BOUNDS) == []


@settings(deadline=None)
@given(correct_histories(), st.data())
def test_each_response_of_another_place_is_found(correct, data):
    """As of a cache whose key lacks the router."""
    changed = data.draw(st.sampled_from(correct.requests))
    other = data.draw(st.sampled_from([place for place in PLACES if place != changed.place]))
    foreign = data.draw(
        st.sampled_from([one.instance_id for one in correct.assignments if one.place == other] or ['instance-0'])
    )
    if not foreign:
        return
    wrong = replace(changed, outcome=OK, instance_id=foreign)
    requests = [wrong if one is changed else one for one in correct.requests]
    assert [one.request for one in check(replace(correct, requests=requests), BOUNDS)] == [wrong]


@pytest.mark.parametrize(
    ('late_s', 'is_found'), [(BOUNDS.fresh_s - 0.2, False), (BOUNDS.fresh_s + 0.2, True), (300.0, True)]
)
def test_stale_response_beyond_the_bound(late_s, is_found):
    moved = [assigned(0.0, 'old'), assigned(100.0, 'new')]
    request = Request(100.1 + late_s, 100.2 + late_s, PLACE, OK, 'old')
    assert bool(check(History([request], moved), BOUNDS)) == is_found


@pytest.mark.parametrize(('late_s', 'is_found'), [(BOUNDS.stale_s - 1, False), (BOUNDS.stale_s + 1, True)])
def test_stale_response_during_an_outage(late_s, is_found):
    moved = [assigned(0.0, 'old'), assigned(100.0, 'new')]
    outage = FaultWindow(90.0, 400.0, 'Neutron down', stops_lookups=True)
    request = Request(100.1 + late_s, 100.2 + late_s, PLACE, OK, 'old')
    assert bool(check(History([request], moved, [outage]), BOUNDS)) == is_found


@pytest.mark.parametrize(('router', 'is_found'), [(PLACE[0], False), ('another', True)])
def test_stale_response_while_neutron_does_not_show_the_router(router, is_found):
    """Its lookups fail, and those of all other routers succeed (doc/caches.md)."""
    moved = [assigned(0.0, 'old'), assigned(100.0, 'new')]
    deleted = FaultWindow(90.0, 130.0, 'router deleted', stops_lookups=True, routers=(router,))
    late_s = BOUNDS.fresh_s + 5.0
    request = Request(100.1 + late_s, 100.2 + late_s, PLACE, OK, 'old')
    assert bool(check(History([request], moved, [deleted]), BOUNDS)) == is_found


def test_404_where_an_instance_is():
    (found,) = check(History([Request(50, 51, PLACE, NOT_FOUND)], [assigned(0.0, 'one')]), BOUNDS)
    assert 'the place had an instance' in found.reason


@pytest.mark.parametrize(
    ('fault', 'is_found'),
    [
        (FaultWindow(40, 60, 'Nova down', outcomes=('503',)), False),
        (FaultWindow(40, 60, 'Nova down', outcomes=('503',), routers=('blue',)), True),
        (FaultWindow(10, 49, 'Nova down', outcomes=('503',)), True),
        (FaultWindow(40, 60, 'Nova down', outcomes=('timeout',)), True),
        (FaultWindow(40, 60, 'Nova down'), True),
    ],
)
def test_failure_needs_a_fault_that_explains_it(fault, is_found):
    request = Request(50, 51, PLACE, RETRY_AFTER)
    assert bool(check(History([request], [assigned(0.0, 'one')], [fault]), BOUNDS)) == is_found


@settings(max_examples=50, deadline=None)
@given(correct_histories())
def test_shrunk_history_has_only_what_the_violation_needs(correct):
    moved = [assigned(0.0, 'old', ('green', '10.1.1.2')), assigned(100.0, 'new', ('green', '10.1.1.2'))]
    request = Request(200.0, 200.1, ('green', '10.1.1.2'), OK, 'old')
    whole = History([*correct.requests, request], [*correct.assignments, *moved], [])
    violation = next(one for one in check(whole, BOUNDS) if one.request == request)
    small = shrink(whole, violation, BOUNDS)
    assert (small.requests, small.faults) == ([request], [])
    assert len(small.assignments) <= 1
    assert 'got the metadata of old' in describe(small, violation)


def test_recorded_history_is_read_back(tmp_path):
    events = [Request(1.0, 2.0, PLACE, OK, 'one'), assigned(0.0, 'one'), FaultWindow(3.0, 4.0, 'x', True, ('503',))]
    recorder = Recorder(tmp_path / 'history')
    for event in events:
        recorder.add(event)
    recorder.close()
    read = history.load(tmp_path / 'history')
    assert [*read.requests, *read.assignments, *read.faults] == events


def test_404_is_right_only_just_after_the_place_changed_its_instance():
    """Nova does not know the former instance, whose entry is younger than a second."""
    assignments = [assigned(0.0, 'former'), assigned(50.0, 'present')]

    def violations(started_s, ended_s):
        return check(History([Request(started_s, ended_s, PLACE, NOT_FOUND)], assignments, []), BOUNDS)

    assert violations(51.0, 51.01) == []
    assert violations(49.0, 50.5) == []
    # The change takes 0.1 s.
    assert violations(49.9, 50.05) == []
    assert violations(51.2, 51.3)
    assert violations(45.0, 49.9)
    assert violations(49.0, 57.0)
