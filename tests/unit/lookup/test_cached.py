# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import IncompleteResult, InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.cached import CachedLookup, networks_cache, pack, unpack
from metadata_wsgi.lookup.neutron import NeutronLookup
from metadata_wsgi.pipeline.environ_keys import Instance, Source
from tests.fakes import FakeClock, FakeLookup

SOURCE = Source('10.1.1.2', router_id='r1')
OLD, NEW = Instance('i1', 'p1', 'port1'), Instance('i2', 'p2', 'port2')
UNAVAILABLE = LookupUnavailable('no route to Quantum')


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def cached_lookup(clock):
    """Puts a cache before a lookup: fresh for 10 s, not found for 1 s, stale for 300 s."""

    def make(inner):
        return CachedLookup(inner, LocalCache(limit=99, clock=clock), fresh_s=10.0, not_found_s=1.0, stale_s=300.0)

    return make


@pytest.fixture
def find(clock):
    return lambda lookup, source=SOURCE: lookup.find(source, Deadline.after(9.0, clock))


def test_a_cached_instance_is_used_at_most_for_its_ttl(cached_lookup, clock, find):
    """The IP-reuse case: the address belongs to another instance now, and Quantum returns that one."""
    inner = FakeLookup([OLD], [NEW])
    lookup = cached_lookup(inner)
    assert find(lookup) == (OLD,)
    clock.sleep(5.9)
    assert (find(lookup), len(inner.calls)) == ((OLD,), 1)
    clock.sleep(4.1)
    assert find(lookup) == (NEW,)


def test_one_address_behind_two_routers_or_on_a_network_is_three_entries(cached_lookup, find):
    inner = FakeLookup([OLD])
    lookup = cached_lookup(inner)
    for source in (SOURCE, Source('10.1.1.2', router_id='r2'), Source('10.1.1.2', network_id='r1')):
        find(lookup, source)
    assert len(inner.calls) == 3


def test_one_link_local_address_on_two_interfaces_is_two_entries(cached_lookup, find):
    inner = FakeLookup([OLD], [NEW])
    lookup = cached_lookup(inner)
    sources = [Source('fe80::1', router_id='r1', interface=name) for name in ('qr-1', 'qr-2')]
    assert [find(lookup, source) for source in sources * 2] == [(OLD,), (NEW,)] * 2


@pytest.mark.parametrize('outcome', [[], [OLD, NEW]], ids=['none', 'several'])
def test_none_and_several_have_a_shorter_ttl(cached_lookup, clock, find, outcome):
    inner = FakeLookup(outcome, [NEW])
    lookup = cached_lookup(inner)
    assert find(lookup) == tuple(outcome)
    assert find(lookup) == tuple(outcome)
    assert len(inner.calls) == 1
    clock.sleep(1.0)
    assert find(lookup) == (NEW,)


@pytest.mark.parametrize('outcome', [[], [OLD, NEW]], ids=['none', 'several'])
def test_none_and_several_are_never_served_stale(cached_lookup, clock, find, outcome):
    lookup = cached_lookup(FakeLookup(outcome, UNAVAILABLE))
    find(lookup)
    clock.sleep(1.0)
    with pytest.raises(LookupUnavailable):
        find(lookup)


def test_a_stale_instance_is_served_while_the_lookup_is_unavailable(cached_lookup, clock, find):
    lookup = cached_lookup(FakeLookup([OLD], UNAVAILABLE))
    find(lookup)
    clock.sleep(299)
    assert find(lookup) == (OLD,)
    clock.sleep(1)
    with pytest.raises(LookupUnavailable):
        find(lookup)


def test_slow_queries_of_one_router_do_not_make_the_instances_of_another_router_stale(cached_lookup, clock, find):
    """The router has so many ports that Neutron responds too late. Behind another router an address moved."""
    of_slow = [Source(address, router_id='slow') for address in ('10.1.1.2', '10.1.1.3')]
    lookup = cached_lookup(FakeLookup([OLD], [OLD], [OLD], UNAVAILABLE, [NEW]))
    for source in (*of_slow, SOURCE):
        find(lookup, source)
    clock.sleep(11)
    assert [find(lookup, source) for source in of_slow] == [(OLD,), (OLD,)]
    assert find(lookup) == (NEW,)


def test_an_error_is_not_cached(cached_lookup, find):
    lookup = cached_lookup(FakeLookup(UNAVAILABLE, InstanceLookupError('no rights'), [OLD]))
    for error in (LookupUnavailable, InstanceLookupError):
        with pytest.raises(error):
            find(lookup)
    assert find(lookup) == (OLD,)


def test_cached_returns_exactly_one_fresh_instance(cached_lookup, clock, find):
    lookup = cached_lookup(FakeLookup([OLD], []))
    assert lookup.cached(SOURCE) is None
    find(lookup)
    assert lookup.cached(SOURCE) == OLD
    clock.sleep(10)
    assert lookup.cached(SOURCE) is None
    find(lookup)
    assert lookup.cached(SOURCE) is None


def test_revalidate_detects_a_moved_instance(cached_lookup, clock, find):
    lookup = cached_lookup(FakeLookup([OLD], [NEW]))
    find(lookup)
    clock.sleep(1.0)
    assert lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))
    assert lookup.cached(SOURCE) == NEW


def test_revalidate_makes_an_unchanged_instance_fresh(cached_lookup, clock, find):
    inner = FakeLookup([OLD])
    lookup = cached_lookup(inner)
    find(lookup)
    clock.sleep(5.0)
    assert not lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))
    clock.sleep(5.0)
    assert lookup.cached(SOURCE) == OLD
    assert len(inner.calls) == 2


def test_revalidate_does_not_look_a_new_result_up_again(cached_lookup, clock, find):
    """A boot draws several 404s of Nova's in a fraction of a second."""
    inner = FakeLookup([OLD])
    lookup = cached_lookup(inner)
    find(lookup)
    clock.sleep(0.9)
    assert not lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))
    assert len(inner.calls) == 1


@pytest.mark.parametrize('found', [[NEW], [], [OLD, NEW]], ids=['another', 'none', 'several'])
def test_revalidate_sees_a_result_that_another_request_has_looked_up(cached_lookup, clock, find, found):
    inner = FakeLookup(found)
    lookup = cached_lookup(inner)
    find(lookup)
    assert lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))
    assert len(inner.calls) == 1


def test_revalidate_looks_an_invalidated_result_up(cached_lookup, clock):
    lookup = cached_lookup(FakeLookup([NEW], [OLD]))
    assert lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))
    lookup.invalidate(SOURCE)
    assert not lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))


def test_revalidate_changes_nothing_while_the_lookup_is_unavailable(cached_lookup, clock, find):
    lookup = cached_lookup(FakeLookup([OLD], UNAVAILABLE))
    find(lookup)
    clock.sleep(2.0)
    with pytest.raises(LookupUnavailable):
        lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))
    assert lookup.cached(SOURCE) == OLD


def test_revalidate_makes_no_lookup_shortly_after_the_lookup_was_unavailable(cached_lookup, clock, find):
    inner = FakeLookup([OLD], UNAVAILABLE)
    lookup = cached_lookup(inner)
    find(lookup)
    clock.sleep(20)
    find(lookup)
    with pytest.raises(LookupUnavailable):
        lookup.revalidate(SOURCE, OLD, Deadline.after(9.0, clock))
    assert len(inner.calls) == 2


def test_a_router_that_neutron_does_not_show_does_not_make_other_routers_stale(cached_lookup, clock, find):
    """Its namespace remains on the host, and its instances still send requests."""
    deleted, other = SOURCE, Source('10.1.1.2', router_id='r2')

    class Lookup:
        now = OLD
        deleted = False

        def find(self, source, deadline):
            if self.deleted and source.router_id == 'r1':
                raise IncompleteResult('Neutron shows no port of router r1')
            return [self.now]

    inner = Lookup()
    lookup = cached_lookup(inner)
    find(lookup, deleted), find(lookup, other)
    clock.sleep(10)
    inner.now, inner.deleted = NEW, True
    for _ in range(3):
        assert find(lookup, deleted) == (OLD,)
        assert find(lookup, other) == (NEW,)
        assert not lookup.revalidate(other, NEW, Deadline.after(9.0, clock))
        clock.sleep(10)


def test_an_invalidated_result_is_not_served_stale(cached_lookup, find):
    lookup = cached_lookup(FakeLookup([OLD], UNAVAILABLE))
    find(lookup)
    lookup.invalidate(SOURCE)
    with pytest.raises(LookupUnavailable):
        find(lookup)


def test_a_result_survives_json():
    assert unpack(pack((OLD, NEW))) == (OLD, NEW)
    assert unpack(pack(())) == ()
    aged = Instance('i', 'p', 'port', 1.5)
    assert [one.created_at_s for one in unpack(json.loads(json.dumps(pack((aged, OLD)))))] == [1.5, None]


@pytest.mark.parametrize('packed', [None, 7, 'ab', [['i', 'p']], [['i', 'p', None]], [['i', 'p', 'q', 'r']], [7]])
def test_an_invalid_packed_result_is_refused(packed):
    with pytest.raises((TypeError, ValueError)):
        unpack(packed)


class Ports:
    """Quantum's API: networks of a router, ports on networks; counts the queries for both."""

    def __init__(self, networks):
        self.networks, self.network_queries, self.port_queries, self.hidden = networks, 0, 0, False
        self.without = set()

    def ports(self, query, deadline, on_query, pages=100):
        names = dict(query)
        if 'limit' in names:
            return [{'id': 'x', 'project_id': 'another'}]
        if 'network_id' not in names:
            self.network_queries += 1
            return [{'device_id': names['device_id'], 'network_id': network} for network in self.networks]
        self.port_queries += 1
        address = names['fixed_ips'].removeprefix('ip_address=')
        wanted = {value for name, value in query if name == 'network_id'}
        return [
            {
                'id': f'port-{network}', 'device_id': f'i-{address}', 'device_owner': 'compute:nova', 'project_id': 'p',
                'network_id': network, 'fixed_ips': [{'ip_address': address}],
            }
            for network in self.networks
            if network in wanted - self.without and not self.hidden
        ]  # fmt: skip

    class auth:  # noqa: N801
        @staticmethod
        def token(deadline):
            class Token:
                endpoint, roles, project_id = 'http://q', frozenset({'service'}), 'ours'

            return Token


@pytest.fixture
def neutron(clock):
    """Makes a NeutronLookup with a cache for the networks of routers, as the filter lookup_cache does."""

    def make(ports):
        cache = networks_cache(LocalCache(limit=99, clock=clock), fresh_s=10.0)
        return NeutronLookup(ports, networks_cache=cache, clock=clock)

    return make


def test_a_hundred_instances_behind_one_router_are_one_query_for_its_networks(cached_lookup, neutron, clock, find):
    ports = Ports(['n1'])
    lookup = cached_lookup(neutron(ports))
    for number in range(100):
        find(lookup, Source(f'10.1.1.{number}', router_id='r1'))
    assert (ports.network_queries, ports.port_queries) == (1, 100)


def test_networks_are_cached_for_a_fifth_of_the_ttl(cached_lookup, neutron, clock, find):
    """The instance has the other four fifths, so that both together stay within the TTL."""
    ports = Ports(['n1'])
    lookup = cached_lookup(neutron(ports))
    find(lookup)
    clock.sleep(2.0)
    find(lookup, Source('10.1.1.3', router_id='r1'))
    assert ports.network_queries == 2


def test_an_instance_on_a_network_that_is_new_to_the_router_is_found_at_once(cached_lookup, neutron, clock, find):
    """Cached networks never cause a wrong 404."""
    ports = Ports(['n0'])
    ports.hidden = True
    lookup = cached_lookup(neutron(ports))
    assert find(lookup) == ()
    ports.networks, ports.hidden = ['n0', 'n1'], False
    ports.without = {'n0'}
    assert [one.instance_id for one in find(lookup, Source('10.1.1.3', router_id='r1'))] == ['i-10.1.1.3']
    find(lookup, Source('10.1.1.4', router_id='r1'))
    assert ports.network_queries == 3  # one confirmed the empty result


def test_an_empty_result_with_unchanged_networks_is_searched_once_and_confirmed_once(
    cached_lookup, neutron, clock, find
):
    ports = Ports(['n1'])
    lookup = cached_lookup(neutron(ports))
    find(lookup, Source('10.1.1.3', router_id='r1'))
    assert (ports.network_queries, ports.port_queries) == (1, 1)
    ports.hidden = True
    assert find(lookup, Source('10.1.1.9', router_id='r1')) == ()
    assert (ports.network_queries, ports.port_queries) == (3, 3)


def test_without_a_cache_each_lookup_queries_the_networks(clock, find):
    ports = Ports(['n1'])
    lookup = NeutronLookup(ports, clock=clock)
    find(lookup)
    find(lookup)
    assert ports.network_queries == 2
