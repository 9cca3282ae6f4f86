# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.cache import local
from metadata_wsgi.cache.local import MAX_ENTRIES_PER_OWNER, LocalCache, Ttl
from tests.fakes import FakeBackend, FakeClock

TTL = Ttl(10.0, 60.0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def cache(clock):
    return LocalCache(limit=100, clock=clock)


def test_an_entry_is_fresh_then_stale_then_expired(cache, clock):
    cache.set('k', 'v', TTL)
    clock.sleep(9.9)
    assert cache.fresh('k').value == 'v'
    clock.sleep(0.1)
    assert cache.fresh('k') is None
    assert cache.stale_ok('k').value == 'v'
    clock.sleep(50)
    assert cache.stale_ok('k') is None


def test_a_deleted_entry_is_not_served_stale(cache):
    cache.set('k', 'v', TTL)
    cache.delete('k')
    assert cache.fresh('k') is None
    assert cache.stale_ok('k') is None


def test_the_oldest_entry_is_evicted_at_the_limit(clock):
    cache = LocalCache(limit=2, clock=clock)
    cache.set('a', 1, TTL)
    cache.set('b', 1, TTL)
    cache.set('a', 2, TTL)
    cache.set('c', 1, TTL)
    assert [cache.fresh(key) is not None for key in 'abc'] == [True, False, True]


def test_the_limit_counts_weight(clock):
    cache = LocalCache(limit=10, weigh=len, clock=clock)
    cache.set('a', b'12345', TTL)
    cache.set('b', b'123456', TTL)
    assert cache.fresh('a') is None
    assert cache.fresh('b').value == b'123456'
    cache.set('c', b'1' * 11, TTL)
    assert cache.fresh('c') is None
    assert len(cache) == 1


def test_an_owner_evicts_its_own_entries_only(clock):
    cache = LocalCache(limit=10**6, owner_of=lambda key: key[0], clock=clock)
    cache.set(('quiet', 0), 'v', TTL)
    for number in range(MAX_ENTRIES_PER_OWNER + 5):
        cache.set(('loud', number), 'v', TTL)
    assert cache.fresh(('quiet', 0)) is not None
    assert cache.fresh(('loud', 4)) is None
    assert cache.fresh(('loud', 5)) is not None
    assert len(cache) == MAX_ENTRIES_PER_OWNER + 1


def test_single_flight_the_second_request_does_not_lead(cache):
    flight, leads = cache.join('k')
    same, follows = cache.join('k')
    assert (leads, follows, same is flight) == (True, False, True)
    cache.leave('k', flight)
    assert same.wait(0)
    assert cache.join('k')[1]


def test_single_flight_a_load_that_began_before_delete_is_not_stored(cache):
    """It may have read the source before the change that caused the delete."""
    early, _ = cache.join('k')
    cache.delete('k')
    cache.set('k', 'old', TTL, flight=early)
    assert cache.fresh('k') is None
    late, leads = cache.join('k')
    assert leads
    cache.leave('k', early)
    cache.set('k', 'new', TTL, flight=late)
    assert cache.fresh('k').value == 'new'


def test_the_backend_is_written_on_change_and_read_on_a_miss(clock):
    backend = FakeBackend()
    cache = LocalCache(limit=100, backend=backend, clock=clock)
    cache.set('k', 'v', TTL)
    assert backend.entries == {'k': ('v', 0.0, TTL)}
    assert cache.fetch('k').value == 'v'
    assert backend.reads == []
    cache.delete('k')
    assert backend.entries == {}
    assert cache.fetch('k') is None
    assert backend.reads == ['k']


def test_an_entry_from_the_backend_keeps_its_age(clock):
    cache = LocalCache(limit=100, backend=FakeBackend(k=('v', 7.0, TTL)), clock=clock)
    assert cache.fetch('k').value == 'v'
    clock.sleep(2.9)
    assert cache.fresh('k').value == 'v'
    clock.sleep(0.2)
    assert cache.fresh('k') is None


def test_an_old_entry_from_the_backend_is_stale(clock):
    cache = LocalCache(limit=100, backend=FakeBackend(k=('v', 11.0, TTL)), clock=clock)
    assert cache.fetch('k') is None
    assert cache.stale_ok('k').value == 'v'


def test_an_older_entry_of_the_backend_does_not_replace_the_local_one(clock):
    cache = LocalCache(limit=100, backend=FakeBackend(k=('theirs', 30.0, TTL)), clock=clock)
    cache.set('k', 'ours', TTL)
    cache._backend.entries['k'] = ('theirs', 30.0, TTL)
    clock.sleep(12)
    assert cache.fetch('k') is None
    assert cache.stale_ok('k').value == 'ours'


class CallbackBackend(FakeBackend):
    """Calls ``during`` in the middle of each call, as another request's delete may come."""

    def __init__(self, **entries):
        super().__init__(**entries)
        self.during = lambda: None

    def get(self, key):
        found = super().get(key)
        self.during()
        return found

    def set(self, key, value, ttl, age_s):
        self.during()
        super().set(key, value, ttl, age_s)


def test_delete_between_check_and_store_of_a_load_is_not_undone(clock):
    """The weight is calculated between the two."""
    cache = LocalCache(limit=100, weigh=lambda value: cache.delete('k') or 1, clock=clock)
    flight, _ = cache.join('k')
    cache.set('k', 'old', TTL, flight=flight)
    assert cache.stale_ok('k') is None


def test_delete_during_a_write_to_the_backend_is_not_undone(clock):
    backend = CallbackBackend()
    cache = LocalCache(limit=100, backend=backend, clock=clock)
    backend.during = lambda: cache.delete('k')
    flight, _ = cache.join('k')
    cache.set('k', 'old', TTL, flight=flight)
    assert (cache.stale_ok('k'), backend.entries) == (None, {})


def test_delete_during_a_read_of_the_backend_is_not_undone(clock):
    backend = CallbackBackend(k=('old', 1.0, TTL))
    cache = LocalCache(limit=100, backend=backend, clock=clock)
    backend.during = lambda: cache.delete('k')
    flight, _ = cache.join('k')
    assert cache.fetch('k', flight=flight) is None
    assert cache.stale_ok('k') is None


class UnavailableBackend(FakeBackend):
    """Its entries cannot be deleted."""

    def delete(self, key):
        pass


def test_entry_that_could_not_be_deleted_in_the_backend_is_not_used(clock):
    """A password must not be written for the instance that had the address before (``lookup.cached``)."""
    backend = UnavailableBackend(k=('old', 1.0, TTL))
    cache = LocalCache(limit=100, backend=backend, clock=clock)
    cache.delete('k')
    assert cache.fetch('k') is None
    # Another host has loaded it afterwards, as far as the clocks can tell.
    clock.sleep(local.CLOCK_DIFFERENCE_S)
    backend.entries['k'] = ('new', 0.0, TTL)
    assert cache.fetch('k').value == 'new'


def test_number_of_remembered_deletes_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(local, 'MAX_DELETED_KEYS', 2)
    backend = UnavailableBackend(a=('a', 1.0, TTL), b=('b', 1.0, TTL), c=('c', 1.0, TTL))
    cache = LocalCache(limit=100, backend=backend, clock=clock)
    for key in 'abac':
        cache.delete(key)
    assert [cache.fetch(key) is None for key in 'abc'] == [True, False, True]
