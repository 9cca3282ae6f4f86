# SPDX-License-Identifier: Apache-2.0
import threading

import pytest

from metadata_wsgi.cache.local import LocalCache, Ttl
from metadata_wsgi.cache.single_flight import PATIENCE_S, RETRY_AFTER_FAILURE_S, SingleFlight, jittered
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from tests.fakes import FakeBehind, FakeClock


class Asked:
    """Says ``outcome``, or raises it; counts, and notes how long it was given."""

    def __init__(self, outcome='v'):
        self.outcome = outcome
        self.given_s = []

    def __call__(self, deadline):
        self.given_s.append(deadline.remaining_s())
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def recall(clock):
    return SingleFlight(LocalCache(limit=100, clock=clock), lives=lambda value: Ttl(10.0, 60.0))


@pytest.fixture
def deadline(clock):
    return Deadline.after(9.0, clock)


def test_it_asks_once_until_the_answer_is_old(recall, clock, deadline):
    ask = Asked()
    assert [recall('k', ask, deadline) for _ in range(3)] == ['v', 'v', 'v']
    assert len(ask.given_s) == 1
    clock.sleep(10)
    recall('k', ask, Deadline.after(9.0, clock))
    assert len(ask.given_s) == 2


def test_a_fault_is_raised_and_not_remembered(recall, deadline):
    ask = Asked(InstanceLookupError('no rights'))
    for _ in range(2):
        with pytest.raises(InstanceLookupError, match='no rights'):
            recall('k', ask, deadline)
    assert len(ask.given_s) == 2


def test_the_old_answer_is_said_while_nobody_can_say(recall, clock):
    recall('k', Asked('old'), Deadline.after(9.0, clock))
    clock.sleep(30)
    away = Asked(LookupUnavailable('no route'))
    assert recall('k', away, Deadline.after(9.0, clock)) == 'old'
    assert away.given_s == [PATIENCE_S]


def test_the_old_answer_ends(recall, clock):
    recall('k', Asked('old'), Deadline.after(9.0, clock))
    clock.sleep(60)
    with pytest.raises(LookupUnavailable):
        recall('k', Asked(LookupUnavailable('no route')), Deadline.after(9.0, clock))


def test_the_old_answer_is_not_said_when_asking_is_of_no_use(recall, clock):
    recall('k', Asked('old'), Deadline.after(9.0, clock))
    clock.sleep(30)
    with pytest.raises(InstanceLookupError):
        recall('k', Asked(InstanceLookupError('no rights')), Deadline.after(9.0, clock))


def test_while_nobody_can_say_only_those_ask_who_have_no_old_answer(recall, clock):
    for key in 'ab':
        recall(key, Asked(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)
    away = Asked(LookupUnavailable('no route'))
    recall('a', away, Deadline.after(9.0, clock))
    assert recall('b', away, Deadline.after(9.0, clock)) == 'old b'
    assert len(away.given_s) == 1
    with pytest.raises(LookupUnavailable):
        recall('c', away, Deadline.after(9.0, clock))
    assert away.given_s[1] == 9.0


def test_it_asks_again_when_they_may_be_back(recall, clock):
    recall('k', Asked('old'), Deadline.after(9.0, clock))
    clock.sleep(30)
    recall('k', Asked(LookupUnavailable('no route')), Deadline.after(9.0, clock))
    clock.sleep(RETRY_AFTER_FAILURE_S)
    assert recall('k', Asked('new'), Deadline.after(9.0, clock)) == 'new'


def test_what_is_in_doubt_is_asked_for_again(recall, deadline):
    recall('k', Asked('old'), deadline)
    assert recall.other('k', 'old', Asked('new'), deadline) == 'new'
    assert recall('k', Asked('newer'), deadline) == 'new'


def test_what_another_who_doubted_it_found_out_meanwhile_is_the_answer(recall, deadline):
    """A hundred guests that were not found on a router's networks are one more question for these."""
    doubted = recall('k', Asked(['n1']), deadline)
    ask = Asked(['n1'])
    assert [recall.other('k', doubted, ask, deadline) for _ in range(3)] == [['n1']] * 3
    assert len(ask.given_s) == 1


def test_doubting_in_vain_forgets_nothing(recall, deadline):
    recall('k', Asked('old'), deadline)
    with pytest.raises(LookupUnavailable):
        recall.other('k', 'old', Asked(LookupUnavailable('no route')), deadline)
    assert recall('k', Asked('new'), deadline) == 'old'


def test_the_memory_behind_is_asked_first(clock, deadline):
    behind = FakeBehind(k=('theirs', 3.0, Ttl(10.0, 60.0)))
    recall = SingleFlight(LocalCache(limit=9, behind=behind, clock=clock), lives=lambda value: Ttl(10.0, 60.0))
    ask = Asked()
    assert recall('k', ask, deadline) == 'theirs'
    assert ask.given_s == []


def test_an_old_answer_from_behind_is_better_than_none(clock, deadline):
    behind = FakeBehind(k=('theirs', 30.0, Ttl(10.0, 60.0)))
    recall = SingleFlight(LocalCache(limit=9, behind=behind, clock=clock), lives=lambda value: Ttl(10.0, 60.0))
    assert recall('k', Asked(LookupUnavailable('no route')), deadline) == 'theirs'


class Gate:
    """Asks only when opened; says who has come."""

    def __init__(self, outcome):
        self.outcome, self.asked, self.open = outcome, 0, threading.Event()
        self.entered = threading.Event()

    def __call__(self, deadline):
        self.asked += 1
        self.entered.set()
        assert self.open.wait(20)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def together(recall, gate, count=20):
    """``count`` threads want the same; the outcomes of all."""
    outcomes = []

    def want():
        try:
            outcomes.append(recall('k', gate, Deadline.after(20.0)))
        except LookupUnavailable as error:
            outcomes.append(str(error))

    first = threading.Thread(target=want)
    first.start()
    assert gate.entered.wait(20)
    others = [threading.Thread(target=want) for _ in range(count - 1)]
    for thread in others:
        thread.start()
    gate.open.set()
    for thread in (first, *others):
        thread.join(20)
    return outcomes


def test_many_who_want_the_same_are_one_question():
    recall = SingleFlight(LocalCache(limit=9), lives=lambda value: Ttl(10.0, 60.0))
    gate = Gate('v')
    assert together(recall, gate) == ['v'] * 20
    assert gate.asked == 1


def test_who_waits_hears_the_fault_too(recall):
    flight, _ = recall.memory.join('k')
    flight.error = LookupUnavailable('no route')
    flight.land()
    with pytest.raises(LookupUnavailable, match='no route'):
        recall('k', Asked(), Deadline.after(9.0))


def test_who_waits_does_so_until_its_own_deadline(recall):
    recall.memory.join('k')
    with pytest.raises(LookupUnavailable, match='the time was over'):
        recall('k', Asked(), Deadline.after(0.0))


def test_who_waits_for_one_that_was_killed_hears_that_it_may_ask_again(recall):
    flight, _ = recall.memory.join('k')
    flight.land()
    with pytest.raises(LookupUnavailable, match='gave up'):
        recall('k', Asked(), Deadline.after(9.0))


def test_lives_end_at_different_times_and_never_late():
    lives = {jittered(10.0) for _ in range(50)}
    assert len(lives) > 1
    assert all(7.5 <= life <= 10.0 for life in lives)
