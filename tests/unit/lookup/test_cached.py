# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup import innermost
from metadata_wsgi.lookup.cached import CachedLookup, pack, unpack
from metadata_wsgi.lookup.neutron import NeutronLookup
from metadata_wsgi.pipeline.environ_keys import Instance, Source
from tests.fakes import FakeClock, FakeLookup

SOURCE = Source('10.1.1.2', router_id='r1')
OLD, NEW = Instance('i1', 'p1', 'port1'), Instance('i2', 'p2', 'port2')
AWAY = LookupUnavailable('no route to Quantum')


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def remembering(clock):
    """Makes one over a directory; 10 s, none for 1 s, 300 s while the directory is away."""

    def make(inner):
        memories = (LocalCache(limit=99, clock=clock), LocalCache(limit=99, clock=clock))
        return CachedLookup(inner, *memories, fresh_s=10.0, none_s=1.0, stale_s=300.0)

    return make


@pytest.fixture
def ask(clock):
    return lambda directory, source=SOURCE: directory.find(source, Deadline.after(9.0, clock))


def test_an_instance_is_told_again_but_not_beyond_its_bound(remembering, clock, ask):
    """The IP-reuse case: the address has moved, and Quantum says so from now on."""
    inner = FakeLookup([OLD], [NEW])
    directory = remembering(inner)
    assert ask(directory) == (OLD,)
    clock.sleep(5.9)
    assert (ask(directory), len(inner.asked)) == ((OLD,), 1)
    clock.sleep(4.1)
    assert ask(directory) == (NEW,)


def test_one_address_behind_two_routers_or_on_a_network_is_three_entries(remembering, ask):
    inner = FakeLookup([OLD])
    directory = remembering(inner)
    for source in (SOURCE, Source('10.1.1.2', router_id='r2'), Source('10.1.1.2', network_id='r1')):
        ask(directory, source)
    assert len(inner.asked) == 3


@pytest.mark.parametrize('outcome', [[], [OLD, NEW]], ids=['none', 'several'])
def test_none_and_several_are_remembered_shorter(remembering, clock, ask, outcome):
    inner = FakeLookup(outcome, [NEW])
    directory = remembering(inner)
    assert ask(directory) == tuple(outcome)
    assert ask(directory) == tuple(outcome)
    assert len(inner.asked) == 1
    clock.sleep(1.0)
    assert ask(directory) == (NEW,)


@pytest.mark.parametrize('outcome', [[], [OLD, NEW]], ids=['none', 'several'])
def test_none_and_several_are_never_told_while_the_directory_is_away(remembering, clock, ask, outcome):
    directory = remembering(FakeLookup(outcome, AWAY))
    ask(directory)
    clock.sleep(1.0)
    with pytest.raises(LookupUnavailable):
        ask(directory)


def test_while_the_directory_is_away_the_old_one_is_told_within_its_bound(remembering, clock, ask):
    directory = remembering(FakeLookup([OLD], AWAY))
    ask(directory)
    clock.sleep(299)
    assert ask(directory) == (OLD,)
    clock.sleep(1)
    with pytest.raises(LookupUnavailable):
        ask(directory)


def test_a_fault_is_not_remembered(remembering, ask):
    directory = remembering(FakeLookup(AWAY, InstanceLookupError('no rights'), [OLD]))
    for error in (LookupUnavailable, InstanceLookupError):
        with pytest.raises(error):
            ask(directory)
    assert ask(directory) == (OLD,)


def test_only_one_fresh_instance_is_known(remembering, clock, ask):
    directory = remembering(FakeLookup([OLD], []))
    assert directory.known(SOURCE) is None
    ask(directory)
    assert directory.known(SOURCE) == OLD
    clock.sleep(10)
    assert directory.known(SOURCE) is None
    ask(directory)
    assert directory.known(SOURCE) is None


def test_it_notices_that_an_instance_moved(remembering, clock, ask):
    directory = remembering(FakeLookup([OLD], [NEW]))
    ask(directory)
    clock.sleep(1.0)
    assert directory.moved(SOURCE, Deadline.after(9.0, clock))
    assert directory.known(SOURCE) == NEW


def test_one_that_did_not_move_is_fresh_again(remembering, clock, ask):
    inner = FakeLookup([OLD])
    directory = remembering(inner)
    ask(directory)
    clock.sleep(5.0)
    assert not directory.moved(SOURCE, Deadline.after(9.0, clock))
    clock.sleep(5.0)
    assert directory.known(SOURCE) == OLD
    assert len(inner.asked) == 2


def test_what_was_found_out_just_now_is_not_asked_for_again(remembering, clock, ask):
    """A boot draws several 404s of Nova's in a fraction of a second."""
    inner = FakeLookup([OLD])
    directory = remembering(inner)
    assert not directory.moved(SOURCE, Deadline.after(9.0, clock))
    ask(directory)
    clock.sleep(0.9)
    assert not directory.moved(SOURCE, Deadline.after(9.0, clock))
    assert len(inner.asked) == 1


def test_a_directory_that_is_away_when_asked_whether_it_moved_changes_nothing(remembering, clock, ask):
    directory = remembering(FakeLookup([OLD], AWAY))
    ask(directory)
    clock.sleep(2.0)
    with pytest.raises(LookupUnavailable):
        directory.moved(SOURCE, Deadline.after(9.0, clock))
    assert directory.known(SOURCE) == OLD


def test_a_directory_that_was_away_a_moment_ago_is_not_asked_whether_it_moved(remembering, clock, ask):
    inner = FakeLookup([OLD], AWAY)
    directory = remembering(inner)
    ask(directory)
    clock.sleep(20)
    ask(directory)
    assert not directory.moved(SOURCE, Deadline.after(9.0, clock))
    assert len(inner.asked) == 2


def test_what_is_forgotten_is_not_told_even_while_the_directory_is_away(remembering, ask):
    directory = remembering(FakeLookup([OLD], AWAY))
    ask(directory)
    directory.forget(SOURCE)
    with pytest.raises(LookupUnavailable):
        ask(directory)


def test_an_answer_survives_json():
    assert unpack(pack((OLD, NEW))) == (OLD, NEW)
    assert unpack(pack(())) == ()
    aged = Instance('i', 'p', 'port', 1.5)
    assert [one.created_at_s for one in unpack(json.loads(json.dumps(pack((aged, OLD)))))] == [1.5, None]


@pytest.mark.parametrize('packed', [None, 7, 'ab', [['i', 'p']], [['i', 'p', None]], [['i', 'p', 'q', 'r']], [7]])
def test_what_is_no_answer_is_refused(packed):
    with pytest.raises((TypeError, ValueError)):
        unpack(packed)


def test_the_directory_that_asks_is_innermost(remembering):
    inner = FakeLookup([OLD])
    assert innermost(remembering(inner)) is inner
    assert innermost(inner) is inner
    assert innermost(None) is None


class Ports:
    """Quantum's answers: networks of a router, ports on networks; counts both."""

    def __init__(self, networks):
        self.networks, self.routers_asked, self.ports_asked, self.hidden = networks, 0, 0, False

    def ports(self, query, deadline, on_query, pages=100):
        names = dict(query)
        if 'limit' in names:
            return [{'id': 'x', 'project_id': 'another'}]
        if 'network_id' not in names:
            self.routers_asked += 1
            return [{'network_id': network} for network in self.networks]
        self.ports_asked += 1
        address = names['fixed_ips'].removeprefix('ip_address=')
        wanted = {value for name, value in query if name == 'network_id'}
        return [
            {
                'id': f'port-{network}', 'device_id': f'i-{address}', 'device_owner': 'compute:nova', 'project_id': 'p',
                'network_id': network, 'fixed_ips': [{'ip_address': address}],
            }
            for network in self.networks
            if network in wanted and not self.hidden
        ]  # fmt: skip

    class auth:  # noqa: N801
        @staticmethod
        def token(deadline):
            class Token:
                endpoint, roles, project_id = 'http://q', frozenset({'service'}), 'ours'

            return Token


def test_a_hundred_guests_behind_one_router_are_one_question_for_its_networks(remembering, clock, ask):
    ports = Ports(['n1'])
    directory = remembering(NeutronLookup(ports, clock=clock))
    for number in range(100):
        ask(directory, Source(f'10.1.1.{number}', router_id='r1'))
    assert (ports.routers_asked, ports.ports_asked) == (1, 100)


def test_networks_are_remembered_for_a_fifth_of_the_bound(remembering, clock, ask):
    """The instance has the other four fifths, so that both together stay within it."""
    ports = Ports(['n1'])
    directory = remembering(NeutronLookup(ports, clock=clock))
    ask(directory)
    clock.sleep(2.0)
    ask(directory, Source('10.1.1.3', router_id='r1'))
    assert ports.routers_asked == 2


def test_a_guest_on_a_network_that_is_new_to_the_router_is_found_at_once(remembering, clock, ask):
    """Nobody is told 'no instance' because of what is remembered."""
    ports = Ports([])
    directory = remembering(NeutronLookup(ports, clock=clock))
    assert ask(directory) == ()
    ports.networks = ['n1']
    assert [one.instance_id for one in ask(directory, Source('10.1.1.3', router_id='r1'))] == ['i-10.1.1.3']
    ask(directory, Source('10.1.1.4', router_id='r1'))
    assert ports.routers_asked == 2


def test_networks_that_are_the_same_as_before_are_not_searched_again(remembering, clock, ask):
    ports = Ports([])
    directory = remembering(NeutronLookup(ports, clock=clock))
    ask(directory)
    ports.networks = ['n1']
    ask(directory, Source('10.1.1.3', router_id='r1'))
    before = ports.ports_asked
    ports.hidden = True
    assert ask(directory, Source('10.1.1.9', router_id='r1')) == ()
    assert (ports.routers_asked, ports.ports_asked) == (3, before + 1)


def test_without_a_cache_each_lookup_asks_for_the_networks(clock, ask):
    ports = Ports(['n1'])
    directory = NeutronLookup(ports, clock=clock)
    ask(directory)
    ask(directory)
    assert ports.routers_asked == 2
