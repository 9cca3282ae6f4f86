# SPDX-License-Identifier: Apache-2.0
"""Two workers with a shared cache before a lookup whose results change, in any order of events.

Whatever happens, a worker returns a result that was right within the documented time (``lookup.cached``), and never
one of another source. A lookup takes time: meanwhile addresses move, other requests arrive and results are invalidated.
"""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.cache.single_flight import REFRESH_TIMEOUT_S, RETRY_AFTER_FAILURE_S
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import IncompleteResult, InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.cached import MIN_REVALIDATE_AGE_S, CachedLookup
from metadata_wsgi.pipeline.environ_keys import Instance, Source
from tests import state_machine
from tests.fakes import FakeClock
from tests.unit.cache.test_local_stateful import ClockedBackend

FRESH_S, NOT_FOUND_S, STALE_S = 10.0, 1.0, 60.0
TIMEOUT_S = 9.0
# A client may shorten the deadline of its own request.
SHORT_TIMEOUT_S = REFRESH_TIMEOUT_S - 0.1
timeouts = st.sampled_from([TIMEOUT_S, TIMEOUT_S, SHORT_TIMEOUT_S, 0.0])
SOURCES = [
    Source('10.1.1.2', router_id='r1'),
    Source('10.1.1.2', network_id='r1'),
    Source('fe80::1', router_id='r1', interface='qr-1'),
]
UP, UNAVAILABLE, FORBIDDEN, INCOMPLETE, SLOW = 'up', 'unavailable', 'forbidden', 'incomplete', 'slow'
# Neutron does not show the router of this source, but all others.
INCOMPLETE_SOURCE = SOURCES[0]
# Neutron responds too late to the queries for the router of these sources.
SLOW_SOURCES = [SOURCES[0], SOURCES[2]]
# Mostly the same one: faults need several requests of one source.
sources = st.sampled_from([*[SOURCES[0]] * 4, *SOURCES])
counts = st.sampled_from([1, 1, 0, 2])
workers = st.sampled_from([0, 1])


def group_of(source):
    return source.router_id, source.network_id


class Truth:
    """Which instances a source had when. Numbers of instances are never reused."""

    def __init__(self, clock):
        self._clock = clock
        self._number = 0
        self._history = {source: [(clock(), self._new(1))] for source in SOURCES}

    def _new(self, count):
        found = []
        for _ in range(count):
            self._number += 1
            found.append(Instance(f'i{self._number}', 'p', f'port{self._number}'))
        return tuple(found)

    def move(self, source, count):
        self._history[source].append((self._clock(), self._new(count)))

    def now(self, source):
        return self._history[source][-1][1]

    def since(self, source, at_s):
        """Every result that was right at some time from ``at_s`` to now."""
        history = self._history[source]
        ends = [*(start for start, _ in history[1:]), float('inf')]
        return [found for (_, found), end in zip(history, ends, strict=True) if end >= at_s]


class LookupOfWorker:
    """The lookup of one worker."""

    def __init__(self, machine, worker):
        self._machine, self._worker = machine, worker

    def find(self, source, deadline):
        return self._machine.find(self._worker, source, deadline)


class CachedLookupMachine(state_machine.StateMachine):
    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.truth = Truth(self.clock)
        self.state = UP
        # Of each worker: when a lookup of each group failed last; the groups that failed since the last result; when
        # that was; when a lookup failed last while two groups had failed.
        self.failed_at_s = [{}, {}]
        self.failed_groups = [set(), set()]
        self.result_at_s = [float('-inf')] * 2
        self.down_at_s = [float('-inf')] * 2
        self.incomplete_at_s = [float('-inf')] * 2
        self.invalidated_at_s = {}
        self.during = []
        self.backend = ClockedBackend(self.clock)
        self.workers = [
            CachedLookup(
                LookupOfWorker(self, number), LocalCache(limit=99, backend=self.backend, clock=self.clock),
                fresh_s=FRESH_S, not_found_s=NOT_FOUND_S, stale_s=STALE_S,
            )
            for number in range(2)
        ]  # fmt: skip

    def find(self, worker, source, deadline):
        """Right when it begins; then time passes, and other things happen, until it returns."""
        found, state, began_s = self.truth.now(source), self.state, self.clock()
        had_time = deadline.remaining_s() > SHORT_TIMEOUT_S
        events, self.during = self.during, []
        for event in events:
            event()
        if self.clock() >= deadline.at_s or state == UNAVAILABLE or (state == SLOW and source in SLOW_SOURCES):
            if had_time:
                self.failed_at_s[worker][group_of(source)] = self.clock()
                if self.result_at_s[worker] < began_s:
                    self.failed_groups[worker].add(group_of(source))
                    if len(self.failed_groups[worker]) > 1:
                        self.down_at_s[worker] = self.clock()
            raise LookupUnavailable('no response')
        if state == FORBIDDEN:
            raise InstanceLookupError('forbidden')
        self.failed_groups[worker].clear()
        self.result_at_s[worker] = self.clock()
        if state == INCOMPLETE and source == INCOMPLETE_SOURCE:
            if had_time:
                self.incomplete_at_s[worker] = self.clock()
            raise IncompleteResult('no such router')
        return found

    # -- events that may happen at any time, also during a lookup

    def move(self, source, count):
        self.truth.move(source, count)

    def move_asked(self, count):
        self.truth.move(self.asking[1], count)

    def pass_time(self, seconds):
        self.clock.sleep(seconds)

    def set_state(self, state):
        self.state = state

    def set_backend(self, available):
        self.backend.available = available

    def invalidate_in(self, worker, source):
        self.workers[worker].invalidate(source)
        # Also if the shared cache was not available, or gets an older result of the other worker afterwards.
        self.invalidated_at_s[worker, source] = self.clock()

    events = st.lists(
        st.one_of(
            st.tuples(st.just('move_asked'), counts),
            st.tuples(st.just('pass_time'), st.sampled_from([1.1, 3.0])),
            st.tuples(st.just('set_state'), st.sampled_from([UP, UNAVAILABLE, FORBIDDEN, INCOMPLETE, SLOW])),
            st.tuples(st.just('invalidate_in'), workers, sources),
            st.tuples(st.just('ask_other'), workers, sources),
        ),
        max_size=4,
    )

    def ask_other(self, worker, source):
        """Another request while the first one waits. One for the same key in the same worker would wait as well."""
        if (worker, source) != self.asking:
            self.check(worker, source)

    asking = None

    # -- rules

    @rule(source=sources, count=counts, later_s=st.sampled_from([0.0, FRESH_S + 0.1]))
    def address_moves(self, source, count, later_s):
        self.move(source, count)
        self.pass_time(later_s)

    @rule(seconds=st.sampled_from([0.1, 0.9, 4.0, 7.5, 61.0]))
    def time_passes(self, seconds):
        self.pass_time(seconds)

    @rule(state=st.sampled_from([UP, UP, UNAVAILABLE, FORBIDDEN, INCOMPLETE, SLOW]))
    def source_changes(self, state):
        self.set_state(state)

    @rule(worker=workers, other=st.sampled_from(SOURCES[1:]), between_s=st.sampled_from([0.1, 4.0]))
    def router_is_deleted(self, worker, other, between_s):
        """Only in Neutron: its instances send requests, and the address of an instance of another router moves."""
        for source in (INCOMPLETE_SOURCE, other):
            self.check(worker, source)
        self.set_state(INCOMPLETE)
        self.address_moves(other, 1, FRESH_S + 0.1)
        self.check(worker, INCOMPLETE_SOURCE)
        self.pass_time(between_s)
        self.check(worker, other)

    @rule(worker=workers, between_s=st.sampled_from([0.1, 4.0]))
    def router_is_slow(self, worker, between_s):
        """Only the queries for one router get no response in time. An address on a network moves."""
        other = SOURCES[1]
        for source in SOURCES:
            self.check(worker, source)
        self.set_state(SLOW)
        self.address_moves(other, 1, FRESH_S + 0.1)
        for source in SLOW_SOURCES:
            self.check(worker, source)
        self.pass_time(between_s)
        self.check(worker, other)

    @rule(available=st.booleans())
    def backend_changes(self, available):
        self.set_backend(available)

    @rule(worker=workers, source=sources)
    def invalidate(self, worker, source):
        self.invalidate_in(worker, source)

    @rule(worker=workers, source=sources, available=st.booleans())
    def write(self, worker, source, available):
        """A request that writes; the shared cache may come back, or become unavailable, at the same time."""
        self.invalidate_in(worker, source)
        self.set_backend(available)
        self.check(worker, source)

    @rule(worker=workers, source=sources, events=events, timeout_s=timeouts)
    def request(self, worker, source, events, timeout_s):
        self.during = [lambda event=event: getattr(self, event[0])(*event[1:]) for event in events]
        self.asking = worker, source
        self.check(worker, source, timeout_s)
        self.asking, self.during = None, []

    meanwhile = st.sampled_from(
        [[], [1.1], ['move', 1.1], ['move', 9.0, 'check'], ['move', 'invalidate_in'],
         ['move', 'invalidate_in', 'check'], [9.0, UNAVAILABLE, 'check', 'move'], [UNAVAILABLE, 'move', 1.1]]
    )  # fmt: skip

    @rule(worker=workers, source=sources, meanwhile=meanwhile)
    def revalidate(self, worker, source, meanwhile):
        """After a 404 of Nova, which was slow: other requests of the same source came meanwhile."""
        lookup = self.workers[worker]
        used = self.check(worker, source)
        if used is None or len(used) != 1:
            return
        for event in meanwhile:
            if event == 'move':
                self.move(source, 1)
            elif isinstance(event, float):
                self.pass_time(event)
            elif event == UNAVAILABLE:
                self.set_state(event)
            else:
                getattr(self, event)(worker, source)
        asked_s = self.clock()
        try:
            changed = lookup.revalidate(source, used[0], Deadline.after(TIMEOUT_S, self.clock))
        except (InstanceLookupError, LookupUnavailable):
            assert self.state != UP or self._failed_lately(worker, source, self.clock())
            return
        if not changed:
            assert used in self.truth.since(source, asked_s - MIN_REVALIDATE_AGE_S)

    def _failed_lately(self, worker, source, now_s):
        failed_at_s = max(self.down_at_s[worker], self.failed_at_s[worker].get(group_of(source), float('-inf')))
        if source == INCOMPLETE_SOURCE:
            failed_at_s = max(failed_at_s, self.incomplete_at_s[worker])
        return now_s - failed_at_s <= RETRY_AFTER_FAILURE_S

    def check(self, worker, source, timeout_s=TIMEOUT_S):
        """A request's result was right within the documented time, counted back from when it is used; the result."""
        asked_s = self.clock()
        # One that comes later may be too late for this request.
        invalidated_at_s = self.invalidated_at_s.get((worker, source), float('-inf'))
        lookup = self.workers[worker]
        try:
            found = tuple(lookup.find(source, Deadline.after(timeout_s, self.clock)))
        except (InstanceLookupError, LookupUnavailable):
            return None
        used_s = self.clock()
        took_s = used_s - asked_s
        if len(found) != 1:
            bound_s = NOT_FOUND_S
        elif self._failed_lately(worker, source, used_s):
            bound_s = STALE_S
        else:
            bound_s = FRESH_S
        since_s = used_s - max(bound_s, took_s)
        since_s = max(since_s, invalidated_at_s)
        assert found in self.truth.since(source, since_s), f'{found} was not right since {since_s}, {bound_s} s'
        return found


def test_cached_lookup_returns_only_what_was_right_within_its_ttl():
    state_machine.run(CachedLookupMachine, runs=60, steps=30)
