# SPDX-License-Identifier: Apache-2.0
import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from keystoneauth1 import exceptions

from metadata_wsgi import limits
from metadata_wsgi.cache.process_shared import MAX_PAUSE_S, SharedPause
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron import auth, transport
from tests.fakes import FakeClock

from .fakes import FakeBasicAuth, FakeCatalog, FakeKeystone

ENDPOINT_FILTER = auth.EndpointFilter(('admin',))
UNAVAILABLE = exceptions.ConnectFailure('no route')


class Fixture:
    """An authenticator with a fake Keystone and a fake clock."""

    def __init__(self, endpoint=None, lifetime_s=3600.0, clock=None):
        self.clock = clock or FakeClock()
        self.keystone = FakeKeystone(self.clock, lifetime_s)
        self.auth = auth.Authenticator(
            self.keystone, endpoint_filter=ENDPOINT_FILTER, endpoint=endpoint, clock=self.clock, now=self.keystone.now
        )

    def hang(self):
        """From now on Keystone does not respond before the deadline. Returns a list with an entry for each attempt."""
        attempts = []

        def wait():
            attempts.append(1)
            self.clock.now_s += transport._DEADLINE.get().remaining_s()

        self.keystone.error, self.keystone.on_fetch = exceptions.ConnectTimeout('no response'), wait
        return attempts

    def token_value(self, rejected=None, timeout_s=9.0):
        return self.token(rejected, timeout_s).headers['X-Auth-Token']

    def token(self, rejected=None, timeout_s=9.0):
        return self.auth.token(Deadline.after(timeout_s, self.clock), rejected)


def test_a_token_is_fetched_once_and_used_again():
    fixture = Fixture()
    assert [fixture.token_value(), fixture.token_value()] == ['token-1', 'token-1']
    assert fixture.keystone.fetched == 1


def test_a_token_has_endpoint_roles_and_project_and_hides_its_value():
    token = Fixture().token()
    assert (token.endpoint, token.roles, token.project_id) == ('http://neutron', {'service'}, 'service-project')
    assert 'token-1' not in repr(token)


def test_a_configured_endpoint_replaces_the_catalogue():
    fixture = Fixture(endpoint='http://override')
    fixture.keystone.catalog = None
    assert fixture.token().endpoint == 'http://override'


def test_a_token_is_renewed_before_it_expires():
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S - 1
    assert fixture.token_value() == 'token-1'
    fixture.clock.now_s += 2
    assert fixture.token_value() == 'token-2'


def test_a_short_lived_token_is_renewed_after_four_fifths_of_its_lifetime():
    fixture = Fixture(lifetime_s=100)
    fixture.token_value()
    fixture.clock.now_s += 79
    assert fixture.token_value() == 'token-1'
    fixture.clock.now_s += 2
    assert fixture.token_value() == 'token-2'


def test_while_keystone_is_unavailable_the_old_token_is_used_until_it_expires():
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.keystone.error = UNAVAILABLE
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    assert fixture.token_value() == 'token-1'
    fixture.clock.now_s += auth.RENEW_BEFORE_EXPIRY_S - auth.EXPIRY_MARGIN_S
    with pytest.raises(LookupUnavailable, match='Keystone gives no token now'):
        fixture.token_value()
    fixture.keystone.error = None
    assert fixture.token_value() == 'token-2'


def test_a_failed_early_renewal_is_not_retried_by_each_request():
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    fixture.keystone.error, attempts = UNAVAILABLE, []
    fixture.keystone.on_fetch = lambda: attempts.append(1)
    for _ in range(5):
        assert fixture.token_value() == 'token-1'
    assert len(attempts) == 1
    fixture.clock.now_s += auth.NEGATIVE_CACHE_S
    assert fixture.token_value() == 'token-1'
    assert len(attempts) == 2


@pytest.mark.parametrize('timeout_s', [9.0, 6.0, 2.0, limits.CIRCUIT_MIN_TIME_S])
def test_an_early_renewal_with_a_keystone_that_hangs_takes_at_most_half_of_the_time_and_2_s(timeout_s):
    """The token is valid: the rest of the time is for the query to Neutron. The retry does not renew again."""
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    fixture.hang()
    deadline = Deadline.after(timeout_s, fixture.clock)
    assert fixture.auth.token(deadline).headers == {'X-Auth-Token': 'token-1'}
    assert deadline.remaining_s() == timeout_s - min(auth.EARLY_RENEWAL_TIMEOUT_S, timeout_s / 2)
    attempts = fixture.hang()
    assert fixture.token_value() == 'token-1'
    fixture.clock.now_s += auth.NEGATIVE_CACHE_S - 0.1
    assert fixture.token_value() == 'token-1'
    assert attempts == []
    fixture.clock.now_s += 0.1
    assert fixture.token_value() == 'token-1'
    assert len(attempts) == 1


def test_a_request_for_a_token_that_gets_no_response_leaves_time_for_a_retry_of_the_requests_that_wait():
    """The check at start has a deadline of 10 s, the request of an instance one of 9 s."""
    fixture = Fixture()
    request = Deadline.after(limits.REQUEST_TIMEOUT_S, fixture.clock)
    fixture.hang()
    with pytest.raises(LookupUnavailable, match='no response'):
        fixture.token_value(timeout_s=10.0)
    assert request.remaining_s() >= limits.REQUEST_TIMEOUT_S / 3
    fixture.keystone.error, fixture.keystone.on_fetch = None, lambda: None
    assert fixture.auth.token(request).headers == {'X-Auth-Token': 'token-1'}


def test_a_keystone_that_is_slower_than_an_early_renewal_gets_few_of_them():
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    attempts = fixture.hang()
    for _ in range(int(auth.RENEW_BEFORE_EXPIRY_S - auth.EXPIRY_MARGIN_S) - 20):
        assert fixture.token_value() == 'token-1'
        fixture.clock.now_s += 1.0
    # With pauses of 5, 10, 20 and 40 s.
    assert len(attempts) == 5


def test_a_request_with_too_little_time_does_not_renew_a_valid_token():
    """Its failure would delay the renewal."""
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    assert fixture.token_value(timeout_s=limits.CIRCUIT_MIN_TIME_S - 0.1) == 'token-1'
    assert fixture.token_value() == 'token-2'


def test_a_permanent_error_is_cached_from_the_end_of_the_attempt():
    fixture, attempts = Fixture(), []

    def respond_slowly():
        attempts.append(1)
        fixture.clock.now_s += auth.NEGATIVE_CACHE_S

    fixture.keystone.error, fixture.keystone.on_fetch = exceptions.NotFound(), respond_slowly
    for _ in range(2):
        with pytest.raises(InstanceLookupError, match='Keystone gives no token'):
            fixture.token_value()
    assert len(attempts) == 1


def test_other_threads_use_the_old_token_during_a_renewal():
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    others = []
    fixture.keystone.on_fetch = lambda: others.append(in_another_thread(fixture.token_value))
    assert fixture.token_value() == 'token-2'
    assert others == ['token-1']


def in_another_thread(call):
    with ThreadPoolExecutor(1) as other:
        return other.submit(call).result()


def test_the_first_token_is_fetched_once_for_all_threads_single_flight():
    """Every thread has seen that there is no token before one is fetched."""
    clock_calls, all_have_looked = [], threading.Event()

    class Clock(FakeClock):
        def __call__(self):
            clock_calls.append(threading.get_ident())
            # Once for its deadline, once with the token that it found.
            if sum(times >= 2 for times in Counter(clock_calls).values()) == 8:
                all_have_looked.set()
            return super().__call__()

    fixture = Fixture(clock=Clock())
    fixture.keystone.on_fetch = lambda: all_have_looked.wait(20)
    with ThreadPoolExecutor(8) as threads:
        tokens = {future.result() for future in [threads.submit(fixture.token_value) for _ in range(8)]}
    assert (tokens, fixture.keystone.fetched) == ({'token-1'}, 1)


def test_a_thread_past_its_deadline_does_not_wait_for_a_renewal():
    fixture = Fixture()
    waited = []

    def call_without_time():
        with pytest.raises(LookupUnavailable, match='the deadline passed'):
            fixture.token_value(timeout_s=0)
        waited.append(True)

    fixture.keystone.on_fetch = lambda: in_another_thread(call_without_time)
    fixture.token_value()
    assert waited == [True]


def test_a_rejected_token_is_renewed_once_for_all_callers():
    fixture = Fixture()
    rejected = fixture.token()
    assert [fixture.token_value(rejected) for _ in range(5)] == ['token-2'] * 5
    assert fixture.keystone.fetched == 2


def test_rejected_credentials_without_a_token_are_a_permanent_error():
    """http_basic and similar plugins have no token."""
    authenticator = auth.Authenticator(FakeBasicAuth({'Authorization': 'Basic xxx'}), endpoint_filter=ENDPOINT_FILTER)
    rejected = authenticator.token(Deadline.after(9))
    with pytest.raises(InstanceLookupError, match='there is no token to renew') as raised:
        authenticator.token(Deadline.after(9), rejected)
    assert not isinstance(raised.value, LookupUnavailable)


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (exceptions.Unauthorized(), 'compare user, password and project'),
        (exceptions.MissingRequiredOptions([]), 'Keystone gives no token'),
        (exceptions.NotFound(), 'Keystone gives no token'),
    ],
)
def test_a_permanent_error_is_cached_and_not_retried(error, message):
    fixture = Fixture()
    fixture.keystone.error, attempts = error, []
    fixture.keystone.on_fetch = lambda: attempts.append(1)
    for _ in range(5):
        with pytest.raises(InstanceLookupError, match=message) as raised:
            fixture.token_value()
        assert not isinstance(raised.value, LookupUnavailable)
    assert len(attempts) == 1
    fixture.clock.now_s += auth.NEGATIVE_CACHE_S
    fixture.keystone.error = None
    assert fixture.token_value() == 'token-1'


@pytest.mark.parametrize(
    'error',
    [
        UNAVAILABLE,
        exceptions.ConnectTimeout(),
        exceptions.ServiceUnavailable(),
        exceptions.InternalServerError(),
        exceptions.TooManyRequests(),
        exceptions.DiscoveryFailure(),
        KeyError('X-Subject-Token'),
        TypeError('not a token'),
    ],
)
def test_a_temporary_error_is_not_cached_so_a_retry_fetches_again(error):
    fixture = Fixture()
    fixture.keystone.error = error
    for _ in range(2):
        with pytest.raises(LookupUnavailable, match='Keystone'):
            fixture.token_value()
    fixture.keystone.error = None
    assert fixture.token_value() == 'token-1'


def test_keystone_that_fails_gets_one_request_in_an_interval_circuit_breaker():
    fixture = Fixture()
    attempts = []
    fixture.keystone.on_fetch = lambda: attempts.append(1)
    fixture.keystone.error = exceptions.ConnectFailure('refused')

    def attempts_of(callers, timeout_s=9.0):
        attempts.clear()
        for _ in range(callers):
            with pytest.raises(LookupUnavailable, match='refused'):
                fixture.token_value(timeout_s=timeout_s)
        return len(attempts)

    assert attempts_of(100) == limits.CIRCUIT_OPEN_FAILURES
    fixture.clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    assert attempts_of(100, timeout_s=limits.CIRCUIT_MIN_TIME_S - 0.1) == 0
    assert attempts_of(100) == 1
    fixture.clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    fixture.keystone.error = None
    assert fixture.token_value() == 'token-1'


def test_attempts_without_time_do_not_open_the_circuit_of_keystone():
    fixture = Fixture()
    fixture.keystone.error = exceptions.ConnectTimeout('no time')
    for _ in range(20):
        with pytest.raises(LookupUnavailable):
            fixture.token_value(timeout_s=0.1)
    fixture.keystone.error = None
    assert fixture.token_value() == 'token-1'


def test_a_plugin_without_credentials_is_an_error():
    authenticator = auth.Authenticator(FakeBasicAuth(None), endpoint_filter=ENDPOINT_FILTER)
    with pytest.raises(InstanceLookupError, match='no credentials for Neutron'):
        authenticator.token(Deadline.after(9))


def test_without_keystone_a_token_never_expires():
    authenticator = auth.Authenticator(FakeBasicAuth({'Authorization': 'Basic xxx'}), endpoint_filter=ENDPOINT_FILTER)
    token = authenticator.token(Deadline.after(9))
    assert (token.roles, token.project_id, token.expires_at_s) == (frozenset(), None, auth.NEVER_S)
    assert not token.is_from_keystone


def test_after_invalidate_callers_get_the_reason_until_a_new_token_is_fetched():
    fixture = Fixture()
    fixture.auth.invalidate(fixture.token(), 'it sees no ports')
    with pytest.raises(InstanceLookupError, match='it sees no ports'):
        fixture.token_value()
    fixture.clock.now_s += auth.NEGATIVE_CACHE_S
    assert fixture.token_value() == 'token-2'


def test_only_the_current_token_can_be_invalidated():
    fixture = Fixture()
    old = fixture.token()
    fixture.token(rejected=old)
    fixture.auth.invalidate(old, 'it sees no ports')
    assert fixture.token_value() == 'token-2'


def test_invalidate_does_not_wait_for_a_renewal():
    fixture = Fixture(lifetime_s=3600)
    old = fixture.token()
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    fixture.keystone.on_fetch = lambda: in_another_thread(lambda: fixture.auth.invalidate(old, 'it sees no ports'))
    assert fixture.token_value() == 'token-2'


def test_rejected_credentials_are_retried_after_growing_pauses():
    """Keystone may lock the account after some failed attempts."""
    fixture = Fixture()
    fixture.keystone.error, attempts = exceptions.Unauthorized(), []
    fixture.keystone.on_fetch = lambda: attempts.append(fixture.clock.now_s)
    started_s = fixture.clock.now_s
    while fixture.clock.now_s < started_s + 1800:
        with pytest.raises(InstanceLookupError, match='compare user, password and project'):
            fixture.token_value()
        fixture.clock.now_s += 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert pauses[:4] == [5, 10, 20, 40]
    assert max(pauses) == MAX_PAUSE_S
    fixture.keystone.error = None
    fixture.clock.now_s += MAX_PAUSE_S
    assert fixture.token_value() == 'token-1'


@pytest.mark.parametrize('error', [exceptions.Unauthorized(), exceptions.NotFound(), exceptions.Forbidden()])
def test_a_rejected_early_renewal_does_not_fail_requests_while_the_token_is_valid(error, caplog):
    fixture = Fixture(lifetime_s=3600)
    fixture.token_value()
    fixture.keystone.error = error
    fixture.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    started_s = fixture.clock.now_s
    while fixture.clock.now_s < started_s + auth.RENEW_BEFORE_EXPIRY_S - auth.EXPIRY_MARGIN_S:
        assert fixture.token_value() == 'token-1'
        fixture.clock.now_s += 1
    assert 'stays in use, but cannot be renewed: Keystone' in caplog.records[0].getMessage()
    with pytest.raises(InstanceLookupError):
        fixture.token_value()


@pytest.mark.parametrize('behind_s', [2 * 3600.0, -2 * 3600.0, 0.0], ids=['ahead', 'behind', 'equal'])
def test_a_wrong_clock_of_this_host_does_not_change_the_lifetime_of_a_token(behind_s, caplog):
    """The clock of this host is ahead of Keystone's by more than the lifetime of a token: one token, one warning."""
    fixture = Fixture(lifetime_s=3600)
    fixture.keystone.behind_s = behind_s
    for _ in range(20):
        assert fixture.token_value() == 'token-1'
        fixture.clock.now_s += 1
    fixture.clock.now_s += 3600
    assert fixture.token_value() == 'token-2'
    warnings = [record.getMessage() for record in caplog.records]
    if not behind_s:
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith(
            f'The clock of this host is 7200 s {"ahead of" if behind_s > 0 else "behind"} Keystone'
        )


ADMIN, INTERNAL, PUBLIC = ((name, 'RegionOne', f'http://{name}') for name in ('admin', 'internal', 'public'))
OTHER_REGION = ('admin', 'RegionTwo', 'http://other')


@pytest.mark.parametrize(
    ('endpoints', 'wanted', 'url'),
    [
        ([PUBLIC, INTERNAL, ADMIN], {'interfaces': ('admin', 'internal', 'public')}, 'http://admin'),
        ([PUBLIC, INTERNAL], {'interfaces': ('admin', 'internal', 'public')}, 'http://internal'),
        ([PUBLIC], {'interfaces': ('admin', 'internal', 'public')}, 'http://public'),
        ([OTHER_REGION, ADMIN], {'interfaces': ('admin',), 'region_name': 'RegionOne'}, 'http://admin'),
        ([('adminURL', 'RegionOne', 'http://v2')], {'interfaces': ('admin',)}, 'http://v2'),
    ],
)
def test_the_endpoint_is_selected_by_region_and_the_first_interface_that_exists(endpoints, wanted, url):
    assert auth.select_endpoint(FakeCatalog(*endpoints), auth.EndpointFilter(**wanted)) == url


@pytest.mark.parametrize(
    ('endpoints', 'wanted', 'message'),
    [
        ([], {'interfaces': ('admin',)}, 'has no network endpoint; without a project in the credentials it is empty'),
        (
            [OTHER_REGION, ADMIN],
            {'interfaces': ('admin',)},
            'network endpoints in the regions RegionOne and RegionTwo; set auth_region to the one of this host',
        ),
        (
            [ADMIN],
            {'interfaces': ('admin',), 'region_name': 'RegionTwo'},
            r'no network endpoint in region RegionTwo \(auth_region\); it has some in RegionOne',
        ),
        (
            [INTERNAL, PUBLIC],
            {'interfaces': ('admin',)},
            'with interface admin; it has internal and public: set endpoint_type',
        ),
        ([ADMIN], {'interfaces': ('admin',), 'service_name': 'quantum'}, 'no network endpoint named quantum'),
    ],
    ids=['none', 'several regions', 'other region', 'no admin endpoint', 'service name'],
)
def test_a_catalogue_without_a_matching_endpoint_is_described(endpoints, wanted, message):
    fixture = Fixture()
    fixture.keystone.catalog = FakeCatalog(*endpoints)
    with pytest.raises(InstanceLookupError, match=message) as raised:
        auth.select_endpoint(fixture.keystone.catalog, auth.EndpointFilter(**wanted))
    assert not isinstance(raised.value, LookupUnavailable)


def test_the_workers_of_an_agent_pause_together_after_rejected_credentials():
    """Otherwise as many attempts as there are workers would lock the account."""
    clock, attempts = FakeClock(), []
    pause, fixtures = SharedPause(clock), [Fixture(clock=clock) for _ in range(4)]
    for fixture in fixtures:
        fixture.auth.rejection_pause = pause
        fixture.keystone.error = exceptions.Unauthorized()
        fixture.keystone.on_fetch = lambda: attempts.append(clock.now_s)
    for _ in range(600):
        for fixture in fixtures:
            with pytest.raises(InstanceLookupError, match='compare user, password and project'):
                fixture.token_value()
        clock.now_s += 1
    assert len(attempts) <= 8
    fixtures[0].keystone.error = None
    clock.now_s += MAX_PAUSE_S
    fixtures[0].token_value()
    assert pause.remaining_s() == 0.0
