# SPDX-License-Identifier: Apache-2.0
import threading
import time

import pytest

from metadata_wsgi.cache.local import LocalCache, Ttl
from metadata_wsgi.cache.single_flight import REFRESH_TIMEOUT_S, RETRY_AFTER_FAILURE_S, SingleFlight, jittered
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import IncompleteResult, InstanceLookupError, LookupUnavailable
from tests.fakes import FakeBackend, FakeClock


class FakeSource:
    """A source that returns or raises ``outcome``; records the time that each load had."""

    def __init__(self, outcome='v'):
        self.outcome = outcome
        self.timeouts_s = []

    def __call__(self, deadline):
        self.timeouts_s.append(deadline.remaining_s())
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def cached_load(clock):
    return SingleFlight(LocalCache(limit=100, clock=clock), ttl_of=lambda value: Ttl(10.0, 60.0), name='lookup')


@pytest.fixture
def deadline(clock):
    return Deadline.after(9.0, clock)


def test_a_fresh_value_is_not_loaded_again(cached_load, clock, deadline):
    source = FakeSource()
    assert [cached_load('k', source, deadline) for _ in range(3)] == ['v', 'v', 'v']
    assert len(source.timeouts_s) == 1
    clock.sleep(10)
    cached_load('k', source, Deadline.after(9.0, clock))
    assert len(source.timeouts_s) == 2


def test_the_ttl_counts_from_the_beginning_of_the_load(clock):
    """The value may have been true only then."""

    def slow_load(deadline):
        clock.sleep(4.0)
        return 'v'

    backend = FakeBackend()
    cache = LocalCache(limit=100, clock=clock, backend=backend)
    SingleFlight(cache, ttl_of=lambda value: Ttl(10.0, 60.0), name='lookup')('k', slow_load, Deadline.after(9.0, clock))
    assert backend.entries['k'] == ('v', 4.0, Ttl(10.0, 60.0))
    clock.sleep(5.9)
    assert cache.fresh('k').value == 'v'
    clock.sleep(0.1)
    assert cache.fresh('k') is None


def test_an_error_is_raised_and_not_cached(cached_load, deadline):
    source = FakeSource(InstanceLookupError('no rights'))
    for _ in range(2):
        with pytest.raises(InstanceLookupError, match='no rights'):
            cached_load('k', source, deadline)
    assert len(source.timeouts_s) == 2


def test_a_stale_value_is_served_while_the_source_is_unavailable(cached_load, clock):
    cached_load('k', FakeSource('old'), Deadline.after(9.0, clock))
    clock.sleep(30)
    unavailable = FakeSource(LookupUnavailable('no route'))
    assert cached_load('k', unavailable, Deadline.after(9.0, clock)) == 'old'
    assert unavailable.timeouts_s == [REFRESH_TIMEOUT_S]


def test_a_load_with_too_little_time_does_not_show_that_the_source_is_down(cached_load, clock):
    """A client may shorten the deadline of its own request. It gets no stale value, and others are loaded again."""
    for key in 'ab':
        cached_load(key, FakeSource(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)
    with pytest.raises(LookupUnavailable, match='too late'):
        cached_load('a', FakeSource(LookupUnavailable('too late')), Deadline.after(REFRESH_TIMEOUT_S - 0.1, clock))
    assert cached_load.recent_failure('b') is None
    assert cached_load('b', FakeSource('new b'), Deadline.after(9.0, clock)) == 'new b'


def deadline_that_shows_the_wait(waits):
    """A deadline in 60 s. Sets ``waits`` when the request that has it waits for the load of another request."""

    def clock():
        waits.set()
        return time.monotonic()

    return Deadline(time.monotonic() + 60.0, clock)


def test_a_request_loads_itself_if_the_load_that_it_waited_for_had_too_little_time():
    """Two instances behind one router: one shortens the deadline of its request. The other must not fail with it."""
    single_flight = SingleFlight(LocalCache(limit=9), ttl_of=lambda value: Ttl(10.0, 60.0), name='networks')
    entered, waits = threading.Event(), threading.Event()
    results = []

    def short_load(deadline):
        entered.set()
        assert waits.wait(60)
        raise LookupUnavailable('the deadline passed')

    def request(load, timeout_s):
        try:
            results.append(single_flight('k', load, Deadline.after(timeout_s)))
        except LookupUnavailable as error:
            results.append(str(error))

    short = threading.Thread(target=request, args=(short_load, REFRESH_TIMEOUT_S - 0.1))
    short.start()
    assert entered.wait(60)
    results.append(single_flight('k', FakeSource('v'), deadline_that_shows_the_wait(waits)))
    short.join(60)
    assert sorted(results) == ['the deadline passed', 'v']


def test_a_failure_of_a_load_with_enough_time_is_that_of_all_that_wait_for_it():
    """Otherwise a hundred requests would send a hundred queries to a failing Neutron, one after the other."""
    single_flight = SingleFlight(LocalCache(limit=9), ttl_of=lambda value: Ttl(10.0, 60.0), name='networks')
    entered, waits = threading.Event(), threading.Event()

    def failing_load(deadline):
        entered.set()
        assert waits.wait(60)
        raise LookupUnavailable('status 500')

    def first_request():
        with pytest.raises(LookupUnavailable):
            single_flight('k', failing_load, Deadline.after(30.0))

    first = threading.Thread(target=first_request)
    first.start()
    assert entered.wait(60)
    other = FakeSource('v')
    with pytest.raises(LookupUnavailable, match='status 500'):
        single_flight('k', other, deadline_that_shows_the_wait(waits))
    first.join(60)
    assert not other.timeouts_s


def test_a_stale_value_expires(cached_load, clock):
    cached_load('k', FakeSource('old'), Deadline.after(9.0, clock))
    clock.sleep(60)
    with pytest.raises(LookupUnavailable):
        cached_load('k', FakeSource(LookupUnavailable('no route')), Deadline.after(9.0, clock))


def test_a_stale_value_is_not_served_for_a_permanent_error(cached_load, clock):
    cached_load('k', FakeSource('old'), Deadline.after(9.0, clock))
    clock.sleep(30)
    with pytest.raises(InstanceLookupError):
        cached_load('k', FakeSource(InstanceLookupError('no rights')), Deadline.after(9.0, clock))


def test_while_the_source_is_unavailable_only_keys_without_a_stale_value_are_loaded(cached_load, clock):
    for key in 'ab':
        cached_load(key, FakeSource(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)
    unavailable = FakeSource(LookupUnavailable('no route'))
    cached_load('a', unavailable, Deadline.after(9.0, clock))
    assert cached_load('b', unavailable, Deadline.after(9.0, clock)) == 'old b'
    assert len(unavailable.timeouts_s) == 1
    with pytest.raises(LookupUnavailable):
        cached_load('c', unavailable, Deadline.after(9.0, clock))
    assert unavailable.timeouts_s[1] == 9.0


def test_an_incomplete_result_makes_only_its_own_key_stale(cached_load, clock):
    """The router of ``a`` is deleted in Neutron, and still sends requests. The instance at ``b`` is replaced."""
    for key in 'ab':
        cached_load(key, FakeSource(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)
    incomplete = FakeSource(IncompleteResult('no such router'))
    assert cached_load('a', incomplete, Deadline.after(9.0, clock)) == 'old a'
    assert cached_load('b', FakeSource('new b'), Deadline.after(9.0, clock)) == 'new b'
    assert cached_load('a', incomplete, Deadline.after(9.0, clock)) == 'old a'
    assert len(incomplete.timeouts_s) == 1
    clock.sleep(RETRY_AFTER_FAILURE_S)
    assert cached_load('a', FakeSource('new a'), Deadline.after(9.0, clock)) == 'new a'


@pytest.fixture
def load_by_router(clock):
    """The keys are of the form ROUTER/ADDRESS."""
    return SingleFlight(
        LocalCache(limit=100, clock=clock),
        ttl_of=lambda value: Ttl(10.0, 60.0),
        group_of=lambda key: key.split('/')[0],
        name='lookup',
    )


def test_the_slow_queries_of_one_router_make_only_its_own_keys_stale(load_by_router, clock):
    """Neutron needs longer for the many ports of ``slow`` than a stale value allows."""
    keys = ['slow/1', 'slow/2', 'other/1']
    for key in keys:
        load_by_router(key, FakeSource(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)
    slow = FakeSource(LookupUnavailable('no response'))
    for _ in range(2):
        assert load_by_router('slow/1', slow, Deadline.after(9.0, clock)) == 'old slow/1'
        assert load_by_router('slow/2', slow, Deadline.after(9.0, clock)) == 'old slow/2'
    assert len(slow.timeouts_s) == 1
    assert load_by_router('other/1', FakeSource('new'), Deadline.after(9.0, clock)) == 'new'
    clock.sleep(RETRY_AFTER_FAILURE_S)
    assert load_by_router('slow/1', FakeSource('new'), Deadline.after(9.0, clock)) == 'new'


@pytest.mark.parametrize(
    'between',
    [FakeSource('new'), FakeSource(IncompleteResult('no such router')), None],
    ids=['success', 'incomplete', 'nothing'],
)
def test_the_source_is_down_if_the_queries_of_two_routers_fail_without_a_response_between(
    load_by_router, clock, between
):
    keys = ['a/1', 'b/1', 'c/1', 'd/1']
    for key in keys:
        load_by_router(key, FakeSource(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)
    unavailable = FakeSource(LookupUnavailable('no route'))
    load_by_router('a/1', unavailable, Deadline.after(9.0, clock))
    assert load_by_router.recent_failure('d/1') is None
    if between:
        load_by_router('c/1', between, Deadline.after(9.0, clock))
    load_by_router('b/1', unavailable, Deadline.after(9.0, clock))
    assert (load_by_router.recent_failure('d/1') is not None) == (between is None)


def test_slow_queries_of_two_routers_at_the_same_time_make_only_their_own_keys_stale(load_by_router, clock):
    """While both wait, the source responds to a query of another router. So the source is available."""
    for key in ('a/1', 'b/1', 'c/1', 'd/1'):
        load_by_router(key, FakeSource(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)

    def slow(*meanwhile):
        def load(deadline):
            for event in meanwhile:
                event()
            clock.sleep(REFRESH_TIMEOUT_S)
            raise LookupUnavailable('no response')

        return load

    def load_of_another_router():
        clock.sleep(0.5)
        assert load_by_router('c/1', FakeSource('new'), Deadline.after(9.0, clock)) == 'new'

    def load_of_the_second_router():
        assert load_by_router('b/1', slow(load_of_another_router), Deadline.after(9.0, clock)) == 'old b/1'

    assert load_by_router('a/1', slow(load_of_the_second_router), Deadline.after(9.0, clock)) == 'old a/1'
    assert load_by_router('d/1', FakeSource('new'), Deadline.after(9.0, clock)) == 'new'


def test_while_the_source_is_down_one_failure_delays_the_loads_of_all_routers_again(load_by_router, clock):
    for key in ('a/1', 'b/1', 'c/1'):
        load_by_router(key, FakeSource(f'old {key}'), Deadline.after(9.0, clock))
    clock.sleep(30)
    unavailable = FakeSource(LookupUnavailable('no route'))
    for key in ('a/1', 'b/1'):
        load_by_router(key, unavailable, Deadline.after(9.0, clock))
    clock.sleep(RETRY_AFTER_FAILURE_S)
    load_by_router('a/1', unavailable, Deadline.after(9.0, clock))
    assert load_by_router.recent_failure('c/1')


@pytest.mark.parametrize('error', [IncompleteResult('no such router'), LookupUnavailable('no route')], ids=str)
def test_the_recent_failure_of_a_key_keeps_no_frame_of_its_request(cached_load, clock, error):
    """A traceback would keep the environ of the request in memory, for up to ``MAX_DELAYED`` keys."""
    with pytest.raises(LookupUnavailable):
        cached_load.refresh('a', 'old', FakeSource(error), Deadline.after(9.0, clock))
    failure = cached_load.recent_failure('a')
    assert (type(failure), str(failure)) == (type(error), str(error))
    assert (failure.__traceback__, failure.__context__, failure.__cause__) == (None, None, None)


def test_an_incomplete_refresh_delays_only_its_own_key(cached_load, clock):
    with pytest.raises(IncompleteResult):
        cached_load.refresh('a', 'old', FakeSource(IncompleteResult('no such router')), Deadline.after(9.0, clock))
    assert cached_load.recent_failure('a')
    assert cached_load.recent_failure('b') is None
    clock.sleep(RETRY_AFTER_FAILURE_S)
    assert cached_load.recent_failure('a') is None


def test_retry_after_the_source_was_unavailable(cached_load, clock):
    cached_load('k', FakeSource('old'), Deadline.after(9.0, clock))
    clock.sleep(30)
    cached_load('k', FakeSource(LookupUnavailable('no route')), Deadline.after(9.0, clock))
    clock.sleep(RETRY_AFTER_FAILURE_S)
    assert cached_load('k', FakeSource('new'), Deadline.after(9.0, clock)) == 'new'


def test_refresh_loads_a_doubted_value_again(cached_load, deadline):
    cached_load('k', FakeSource('old'), deadline)
    assert cached_load.refresh('k', 'old', FakeSource('new'), deadline) == 'new'
    assert cached_load('k', FakeSource('newer'), deadline) == 'new'


def test_refresh_uses_the_value_that_another_request_has_loaded_meanwhile(cached_load, deadline):
    """A hundred instances that are not found on the networks of a router cause one more query for these."""
    doubted = cached_load('k', FakeSource(['n1']), deadline)
    source = FakeSource(['n1'])
    assert [cached_load.refresh('k', doubted, source, deadline) for _ in range(3)] == [['n1']] * 3
    assert len(source.timeouts_s) == 1


def test_a_failed_refresh_keeps_the_value(cached_load, deadline):
    cached_load('k', FakeSource('old'), deadline)
    with pytest.raises(LookupUnavailable):
        cached_load.refresh('k', 'old', FakeSource(LookupUnavailable('no route')), deadline)
    assert cached_load('k', FakeSource('new'), deadline) == 'old'


def test_the_backend_is_read_before_the_source(clock, deadline):
    backend = FakeBackend(k=('theirs', 3.0, Ttl(10.0, 60.0)))
    cached_load = SingleFlight(
        LocalCache(limit=9, backend=backend, clock=clock), ttl_of=lambda value: Ttl(10.0, 60.0), name='lookup'
    )
    source = FakeSource()
    assert cached_load('k', source, deadline) == 'theirs'
    assert source.timeouts_s == []


def test_a_stale_value_from_the_backend_is_served_while_the_source_is_unavailable(clock, deadline):
    backend = FakeBackend(k=('theirs', 30.0, Ttl(10.0, 60.0)))
    cached_load = SingleFlight(
        LocalCache(limit=9, backend=backend, clock=clock), ttl_of=lambda value: Ttl(10.0, 60.0), name='lookup'
    )
    assert cached_load('k', FakeSource(LookupUnavailable('no route')), deadline) == 'theirs'


class Gate:
    """A source whose loads block until ``open`` is set; ``entered`` is set by the first."""

    def __init__(self, outcome):
        self.outcome, self.loads, self.open = outcome, 0, threading.Event()
        self.entered = threading.Event()

    def __call__(self, deadline):
        self.loads += 1
        self.entered.set()
        assert self.open.wait(20)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def together(cached_load, gate, count=20):
    """``count`` threads load one key concurrently; the outcomes of all."""
    outcomes = []

    def load():
        try:
            outcomes.append(cached_load('k', gate, Deadline.after(20.0)))
        except LookupUnavailable as error:
            outcomes.append(str(error))

    first = threading.Thread(target=load)
    first.start()
    assert gate.entered.wait(20)
    others = [threading.Thread(target=load) for _ in range(count - 1)]
    for thread in others:
        thread.start()
    gate.open.set()
    for thread in (first, *others):
        thread.join(60)
    return outcomes


def test_single_flight_concurrent_requests_are_one_load():
    cached_load = SingleFlight(LocalCache(limit=9), ttl_of=lambda value: Ttl(10.0, 60.0), name='lookup')
    gate = Gate('v')
    assert together(cached_load, gate) == ['v'] * 20
    assert gate.loads == 1


def test_single_flight_waiters_get_the_error_too(cached_load):
    flight, _ = cached_load.cache.join('k')
    flight.error = LookupUnavailable('no route')
    flight.land()
    with pytest.raises(LookupUnavailable, match='no route'):
        cached_load('k', FakeSource(), Deadline.after(9.0))


def test_single_flight_a_waiter_waits_until_its_own_deadline(cached_load):
    cached_load.cache.join('k')
    with pytest.raises(LookupUnavailable, match='the deadline passed'):
        cached_load('k', FakeSource(), Deadline.after(0.0))


def test_single_flight_waiters_of_a_killed_request_may_retry(cached_load):
    flight, _ = cached_load.cache.join('k')
    flight.land()
    with pytest.raises(LookupUnavailable, match='was aborted'):
        cached_load('k', FakeSource(), Deadline.after(9.0))


def test_jittered_ttls_differ_and_are_never_longer():
    ttl = {jittered(10.0) for _ in range(50)}
    assert len(ttl) > 1
    assert all(7.5 <= life <= 10.0 for life in ttl)


@pytest.mark.parametrize(
    ('had_s', 'error', 'is_down'),
    [
        (REFRESH_TIMEOUT_S, LookupUnavailable('no response'), True),
        (REFRESH_TIMEOUT_S - 0.1, LookupUnavailable('no response'), False),
        (REFRESH_TIMEOUT_S, IncompleteResult('no such router'), False),
        (REFRESH_TIMEOUT_S, InstanceLookupError('no rights'), False),
    ],
    ids=['unavailable', 'too little time', 'incomplete', 'refused'],
)
def test_failed_refresh_shows_that_the_source_is_down_if_it_had_time_to_respond(
    cached_load, clock, had_s, error, is_down
):
    """So the next requests do not wait for it."""
    with pytest.raises(InstanceLookupError):
        cached_load.refresh('k', 'old', FakeSource(error), Deadline.after(had_s, clock))
    assert (cached_load.recent_failure('another key') is not None) == is_down
    clock.sleep(RETRY_AFTER_FAILURE_S)
    assert cached_load.recent_failure('another key') is None
