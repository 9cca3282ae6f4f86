# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.cache.local import MAX_ENTRIES_PER_OWNER, LocalCache, Ttl
from tests.fakes import FakeBehind, FakeClock

LIVES = Ttl(10.0, 60.0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def memory(clock):
    return LocalCache(limit=100, clock=clock)


def test_an_entry_is_fresh_then_usable_then_gone(memory, clock):
    memory.keep('k', 'v', LIVES)
    clock.sleep(9.9)
    assert memory.fresh('k').value == 'v'
    clock.sleep(0.1)
    assert memory.fresh('k') is None
    assert memory.usable('k').value == 'v'
    clock.sleep(50)
    assert memory.usable('k') is None


def test_what_is_forgotten_is_not_even_usable(memory):
    memory.keep('k', 'v', LIVES)
    memory.forget('k')
    assert memory.fresh('k') is None
    assert memory.usable('k') is None


def test_the_oldest_goes_when_it_is_full(clock):
    memory = LocalCache(limit=2, clock=clock)
    memory.keep('a', 1, LIVES)
    memory.keep('b', 1, LIVES)
    memory.keep('a', 2, LIVES)
    memory.keep('c', 1, LIVES)
    assert [memory.fresh(key) is not None for key in 'abc'] == [True, False, True]


def test_it_is_full_by_weight(clock):
    memory = LocalCache(limit=10, weigh=len, clock=clock)
    memory.keep('a', b'12345', LIVES)
    memory.keep('b', b'123456', LIVES)
    assert memory.fresh('a') is None
    assert memory.fresh('b').value == b'123456'
    memory.keep('c', b'1' * 11, LIVES)
    assert memory.fresh('c') is None
    assert len(memory) == 1


def test_one_owner_pushes_out_its_own_entries_only(clock):
    memory = LocalCache(limit=10**6, owner=lambda key: key[0], clock=clock)
    memory.keep(('quiet', 0), 'v', LIVES)
    for number in range(MAX_ENTRIES_PER_OWNER + 5):
        memory.keep(('loud', number), 'v', LIVES)
    assert memory.fresh(('quiet', 0)) is not None
    assert memory.fresh(('loud', 4)) is None
    assert memory.fresh(('loud', 5)) is not None
    assert len(memory) == MAX_ENTRIES_PER_OWNER + 1


def test_the_second_who_asks_does_not_lead(memory):
    flight, leads = memory.join('k')
    same, follows = memory.join('k')
    assert (leads, follows, same is flight) == (True, False, True)
    memory.leave('k', flight)
    assert same.wait(0)
    assert memory.join('k')[1]


def test_who_was_overtaken_by_forget_changes_nothing(memory):
    """It may have asked before whatever made somebody forget."""
    early, _ = memory.join('k')
    memory.forget('k')
    memory.keep('k', 'old', LIVES, flight=early)
    assert memory.fresh('k') is None
    late, leads = memory.join('k')
    assert leads
    memory.leave('k', early)
    memory.keep('k', 'new', LIVES, flight=late)
    assert memory.fresh('k').value == 'new'


def test_the_memory_behind_hears_of_changes_and_is_asked_last(clock):
    behind = FakeBehind()
    memory = LocalCache(limit=100, behind=behind, clock=clock)
    memory.keep('k', 'v', LIVES)
    assert behind.entries == {'k': ('v', 0.0, LIVES)}
    assert memory.fetch('k').value == 'v'
    assert behind.asked == []
    memory.forget('k')
    assert behind.entries == {}
    assert memory.fetch('k') is None
    assert behind.asked == ['k']


def test_what_comes_from_behind_keeps_its_age(clock):
    memory = LocalCache(limit=100, behind=FakeBehind(k=('v', 7.0, LIVES)), clock=clock)
    assert memory.fetch('k').value == 'v'
    clock.sleep(2.9)
    assert memory.fresh('k').value == 'v'
    clock.sleep(0.2)
    assert memory.fresh('k') is None


def test_what_comes_from_behind_too_old_is_usable_at_most(clock):
    memory = LocalCache(limit=100, behind=FakeBehind(k=('v', 11.0, LIVES)), clock=clock)
    assert memory.fetch('k') is None
    assert memory.usable('k').value == 'v'


def test_an_older_entry_behind_does_not_replace_ours(clock):
    memory = LocalCache(limit=100, behind=FakeBehind(k=('theirs', 30.0, LIVES)), clock=clock)
    memory.keep('k', 'ours', LIVES)
    memory._behind.entries['k'] = ('theirs', 30.0, LIVES)
    clock.sleep(12)
    assert memory.fetch('k') is None
    assert memory.usable('k').value == 'ours'
