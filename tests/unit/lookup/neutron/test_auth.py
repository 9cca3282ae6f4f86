# SPDX-License-Identifier: Apache-2.0
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from keystoneauth1 import exceptions

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron import auth
from tests.fakes import FakeClock

from .fakes import FakeKeystone

WHERE = {'service_type': 'network', 'interface': 'admin', 'region_name': None}
AWAY = exceptions.ConnectFailure('no route')


class Asked:
    """Access to a fake Keystone on a fake clock."""

    def __init__(self, endpoint=None, lasts_s=3600.0, clock=None):
        self.clock = clock or FakeClock()
        self.keystone = FakeKeystone(self.clock, lasts_s)
        self.access = auth.Access(
            self.keystone, where=WHERE, endpoint=endpoint, clock=self.clock, now=self.keystone.now
        )

    def token(self, refused=None, within_s=9.0):
        return self.grant(refused, within_s).headers['X-Auth-Token']

    def grant(self, refused=None, within_s=9.0):
        return self.access.grant(Deadline.after(within_s, self.clock), refused)


def test_a_token_is_fetched_once_and_used_again():
    asked = Asked()
    assert [asked.token(), asked.token()] == ['token-1', 'token-1']
    assert asked.keystone.sought == [{'skip_discovery': True, **WHERE}]


def test_what_a_grant_says():
    grant = Asked().grant()
    assert (grant.endpoint, grant.roles, grant.project_id) == ('http://neutron', {'service'}, 'service-project')
    assert 'token-1' not in repr(grant)


def test_a_configured_endpoint_needs_no_catalogue():
    asked = Asked(endpoint='http://override')
    assert asked.grant().endpoint == 'http://override'
    assert asked.keystone.sought == []


def test_a_token_is_renewed_before_its_end():
    asked = Asked(lasts_s=3600)
    asked.token()
    asked.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S - 1
    assert asked.token() == 'token-1'
    asked.clock.now_s += 2
    assert asked.token() == 'token-2'


def test_a_short_token_is_renewed_after_four_fifths_of_it():
    asked = Asked(lasts_s=100)
    asked.token()
    asked.clock.now_s += 79
    assert asked.token() == 'token-1'
    asked.clock.now_s += 2
    assert asked.token() == 'token-2'


def test_while_keystone_is_away_the_old_token_is_used_as_long_as_it_lasts():
    asked = Asked(lasts_s=3600)
    asked.token()
    asked.keystone.fails = AWAY
    asked.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    assert asked.token() == 'token-1'
    asked.clock.now_s += auth.RENEW_BEFORE_EXPIRY_S - auth.LAST_S
    with pytest.raises(LookupUnavailable, match='Keystone gives no token now'):
        asked.token()
    asked.keystone.fails = None
    assert asked.token() == 'token-2'


def test_an_early_renewal_that_failed_is_not_tried_for_each_request():
    asked = Asked(lasts_s=3600)
    asked.token()
    asked.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    asked.keystone.fails, tried = AWAY, []
    asked.keystone.before = lambda: tried.append(1)
    for _ in range(5):
        assert asked.token() == 'token-1'
    assert len(tried) == 1
    asked.clock.now_s += auth.NEGATIVE_CACHE_S
    assert asked.token() == 'token-1'
    assert len(tried) == 2


def test_others_go_on_with_the_old_token_while_one_renews():
    asked = Asked(lasts_s=3600)
    asked.token()
    asked.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    others = []
    asked.keystone.before = lambda: others.append(in_another_thread(asked.token))
    assert asked.token() == 'token-2'
    assert others == ['token-1']


def in_another_thread(call):
    with ThreadPoolExecutor(1) as other:
        return other.submit(call).result()


def test_the_first_token_is_fetched_once_for_all_threads():
    """All of them have seen that there is none before it is fetched."""
    looked, all_looked = [], threading.Event()

    class Clock(FakeClock):
        def __call__(self):
            looked.append(threading.get_ident())
            # Once for its deadline, once with the grant that it found.
            if sum(times >= 2 for times in Counter(looked).values()) == 8:
                all_looked.set()
            return super().__call__()

    asked = Asked(clock=Clock())
    asked.keystone.before = lambda: all_looked.wait(20)
    with ThreadPoolExecutor(8) as threads:
        tokens = {future.result() for future in [threads.submit(asked.token) for _ in range(8)]}
    assert (tokens, asked.keystone.fetched) == ({'token-1'}, 1)


def test_who_has_no_time_does_not_wait_for_anothers_renewal():
    asked = Asked()
    waited = []

    def impatient():
        with pytest.raises(LookupUnavailable, match='the time was over'):
            asked.token(within_s=0)
        waited.append(True)

    asked.keystone.before = lambda: in_another_thread(impatient)
    asked.token()
    assert waited == [True]


def test_a_refused_token_is_renewed_once_by_whoever_comes_first():
    asked = Asked()
    refused = asked.grant()
    assert [asked.token(refused) for _ in range(5)] == ['token-2'] * 5
    assert (asked.keystone.fetched, asked.keystone.invalidated) == (2, 1)


def test_what_was_refused_and_cannot_be_renewed_is_an_error():
    """http_basic and the like: there is no token."""
    asked = Asked()
    refused = asked.grant()
    asked.keystone.can_renew = False
    with pytest.raises(InstanceLookupError, match='there is no token to renew') as raised:
        asked.token(refused)
    assert not isinstance(raised.value, LookupUnavailable)


@pytest.mark.parametrize(
    ('fails', 'said'),
    [
        (exceptions.Unauthorized(), 'compare user, password and project'),
        (exceptions.EndpointNotFound(), 'Keystone knows no such Quantum'),
        (exceptions.MissingRequiredOptions([]), 'Keystone gives no token'),
        (exceptions.NotFound(), 'Keystone gives no token'),
    ],
)
def test_what_asking_again_will_not_mend_is_remembered_for_a_while(fails, said):
    asked = Asked()
    asked.keystone.fails, tried = fails, []
    asked.keystone.before = lambda: tried.append(1)
    for _ in range(5):
        with pytest.raises(InstanceLookupError, match=said) as raised:
            asked.token()
        assert not isinstance(raised.value, LookupUnavailable)
    assert len(tried) == 1
    asked.clock.now_s += auth.NEGATIVE_CACHE_S
    asked.keystone.fails = None
    assert asked.token() == 'token-1'


@pytest.mark.parametrize(
    'fails',
    [
        AWAY,
        exceptions.ConnectTimeout(),
        exceptions.ServiceUnavailable(),
        exceptions.InternalServerError(),
        exceptions.TooManyRequests(),
        exceptions.DiscoveryFailure(),
        KeyError('X-Subject-Token'),
        TypeError('not a token'),
    ],
)
def test_what_may_pass_is_asked_again_at_once(fails):
    asked = Asked()
    asked.keystone.fails = fails
    for _ in range(2):
        with pytest.raises(LookupUnavailable, match='Keystone'):
            asked.token()
    asked.keystone.fails = None
    assert asked.token() == 'token-1'


def test_an_endpoint_that_the_catalogue_does_not_have_is_named():
    asked = Asked()
    asked.keystone.endpoint = None
    with pytest.raises(InstanceLookupError, match='no endpoint of service_type network, interface admin'):
        asked.token()


def test_a_plugin_without_credentials_is_an_error():
    asked = Asked()
    asked.keystone.get_auth_headers = lambda: None
    with pytest.raises(InstanceLookupError, match='no credentials for Quantum'):
        asked.token()


def test_without_a_token_a_grant_lasts_for_ever():
    asked = Asked()
    asked.keystone.get_auth_headers = lambda: {'Authorization': 'Basic xxx'}
    grant = asked.grant()
    assert (grant.roles, grant.project_id, grant.ends_at_s) == (frozenset(), None, auth.FOREVER_S)


def test_a_distrusted_grant_is_answered_with_its_reason_for_a_while():
    asked = Asked()
    asked.access.distrust(asked.grant(), 'it sees nothing')
    with pytest.raises(InstanceLookupError, match='it sees nothing'):
        asked.token()
    asked.clock.now_s += auth.NEGATIVE_CACHE_S
    assert asked.token() == 'token-2'


def test_only_the_current_grant_can_be_distrusted():
    asked = Asked()
    old = asked.grant()
    asked.grant(refused=old)
    asked.access.distrust(old, 'it sees nothing')
    assert asked.token() == 'token-2'


def test_distrust_waits_for_nobody():
    asked = Asked(lasts_s=3600)
    old = asked.grant()
    asked.clock.now_s += 3600 - auth.RENEW_BEFORE_EXPIRY_S
    asked.keystone.before = lambda: in_another_thread(lambda: asked.access.distrust(old, 'it sees nothing'))
    assert asked.token() == 'token-2'
