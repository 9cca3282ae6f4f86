# SPDX-License-Identifier: Apache-2.0
"""The local cache against a list of entries, in any order of operations."""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from metadata_wsgi.cache import local
from metadata_wsgi.cache.local import LocalCache, Ttl
from tests import state_machine
from tests.fakes import FakeBackend, FakeClock

LIMIT, PER_OWNER = 12, 3
KEYS = st.tuples(st.sampled_from(['owner-a', 'owner-b', None]), st.integers(0, 4))


@dataclass
class ModelEntry:
    """What the cache must have of a key. The list of them is in the order of their storing."""

    key: tuple
    value: int
    loaded_at_s: float
    ttl: Ttl


class ClockedBackend(FakeBackend):
    """A shared cache whose entries age, as those of memcached do."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock
        self.available = True

    def get(self, key):
        found = self.entries.get(key) if self.available else None
        return found and (found[0], self._clock() - found[1], found[2])

    def set(self, key, value, ttl, age_s):
        if self.available:
            self.entries[key] = (value, self._clock() - age_s, ttl)

    def delete(self, key):
        if self.available:
            super().delete(key)


class LocalCacheMachine(state_machine.StateMachine):
    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.backend = ClockedBackend(self.clock)
        # A value is its own weight; a key's first part is its owner.
        self.cache = LocalCache(
            limit=LIMIT, weigh=lambda value: value, owner_of=lambda key: key[0], backend=self.backend, clock=self.clock
        )
        self.entries = []
        self.deleted_at_s = {}
        self.flights = []

    def model(self, key):
        return next((entry for entry in self.entries if entry.key == key), None)

    def remove(self, key):
        self.entries = [entry for entry in self.entries if entry.key != key]

    def store(self, key, value, ttl, loaded_at_s):
        self.remove(key)
        if value > LIMIT:
            return
        self.entries.append(ModelEntry(key, value, loaded_at_s, ttl))
        same_owner = [entry for entry in self.entries if key[0] is not None and entry.key[0] == key[0]]
        if len(same_owner) > PER_OWNER:
            self.remove(same_owner[0].key)
        while sum(entry.value for entry in self.entries) > LIMIT:
            self.entries.pop(0)

    def is_fresh(self, key):
        found = self.model(key)
        return found is not None and self.clock() < found.loaded_at_s + found.ttl.fresh_s

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 20.0]))
    def time_passes(self, seconds):
        self.clock.sleep(seconds)

    @rule()
    def backend_fails_or_returns(self):
        self.backend.available = not self.backend.available

    @rule(key=KEYS, value=st.integers(1, LIMIT + 1), ttl=st.builds(Ttl, st.sampled_from([1.0, 9.0]), st.just(15.0)))
    def set(self, key, value, ttl):
        self.cache.set(key, value, ttl)
        self.store(key, value, ttl, self.clock())

    @rule(key=KEYS, value=st.integers(1, 3), age_s=st.sampled_from([0.0, 2.0]))
    def another_worker_sets(self, key, value, age_s):
        self.backend.entries[key] = (value, self.clock() - age_s, Ttl(9.0, 15.0))

    @rule(key=KEYS)
    def delete(self, key):
        self.cache.delete(key)
        self.remove(key)
        self.deleted_at_s[key] = self.clock()
        self.flights = [(of, flight, True if of == key else deleted) for of, flight, deleted in self.flights]
        if self.backend.available:
            assert key not in self.backend.entries

    @rule(key=KEYS)
    def fetch(self, key):
        found = self.backend.get(key)
        if not self.is_fresh(key) and found is not None:
            value, age_s, ttl = found
            newest_deleted_s = self.deleted_at_s.get(key, float('-inf')) + local.CLOCK_DIFFERENCE_S
            if self.clock() - age_s < newest_deleted_s:
                assert self.cache.fetch(key) is None
                return
            former = self.model(key)
            if former is None or former.loaded_at_s < self.clock() - age_s:
                self.store(key, value, ttl, self.clock() - age_s)
        entry = self.cache.fetch(key)
        assert (entry is not None) == self.is_fresh(key)

    @rule(key=KEYS)
    def join(self, key):
        flight, leads = self.cache.join(key)
        in_flight = [known for of, known, deleted in self.flights if of == key and not deleted]
        assert leads == (not in_flight)
        if leads:
            self.flights.append((key, flight, False))
        else:
            assert [flight] == in_flight

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), value=st.integers(1, 3))
    def land(self, data, value):
        key, flight, deleted = self.flights.pop(data.draw(st.integers(0, len(self.flights) - 1)))
        stored_before = self.backend.entries.get(key)
        self.cache.set(key, value, Ttl(9.0, 15.0), flight=flight)
        self.cache.leave(key, flight)
        assert flight.wait(0)
        if deleted:
            # What was loaded before the delete is stored nowhere.
            assert self.backend.entries.get(key) == stored_before
        else:
            self.store(key, value, Ttl(9.0, 15.0), self.clock())

    @invariant()
    def has_the_entries_of_the_model(self):
        assert len(self.cache) == len(self.entries)
        for owner in ('owner-a', 'owner-b', None):
            for number in range(5):
                key = owner, number
                expected = self.model(key)
                fresh, stale = self.cache.fresh(key), self.cache.stale_ok(key)
                assert (fresh is not None) == self.is_fresh(key)
                usable = expected is not None and self.clock() < expected.loaded_at_s + expected.ttl.stale_s
                assert (stale is not None) == usable
                for entry in filter(None, (fresh, stale)):
                    assert (entry.value, entry.loaded_at_s) == (expected.value, expected.loaded_at_s)


def test_local_cache_has_the_entries_of_its_model_after_any_operations(monkeypatch):
    monkeypatch.setattr(local, 'MAX_ENTRIES_PER_OWNER', PER_OWNER)
    state_machine.run(LocalCacheMachine, runs=60, steps=40)
