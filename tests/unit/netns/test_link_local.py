# SPDX-License-Identifier: Apache-2.0
"""Which interfaces get fe80::a9fe:a9fe, and what is done where somebody else has it. The kernel's part: tests/netns."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.netns import interface_state, link_local
from metadata_wsgi.netns.interface_state import CHECKING, DUPLICATE, MISSING, USABLE, Interface
from tests.fakes import FakeClock

ALIEN = 'fa:16:3e:00:00:99'


class FakeLinks:
    """Interfaces on networks (``on``: index to network). A check takes ``check_s`` of the clock.

    ``aliens`` are networks on which somebody else has the address, each with the moment he leaves.
    """

    def __init__(self, *interfaces, on=None, aliens=None, check_s=1.0):
        self.clock = FakeClock(0.0)
        self.there = {interface.index: interface for interface in interfaces}
        self.on = on or {index: index for index in self.there}
        self.aliens = aliens or {}
        self.check_s = check_s
        self.checked_at = {}
        self.added, self.removed = [], []

    def interfaces(self):
        for index, interface in self.there.items():
            if interface.state == CHECKING and self.clock() >= self.checked_at.get(index, 1e9):
                state = DUPLICATE if self._holder(interface) else USABLE
                self.there[index] = replace(interface, state=state)
        return list(self.there.values())

    def add(self, interface):
        assert interface.has_ipv6
        assert self.there[interface.index].state == MISSING
        self.added.append(interface.name)
        self.there[interface.index] = replace(interface, state=CHECKING, ours=True)
        if interface.up:
            self.checked_at[interface.index] = self.clock() + self.check_s

    def remove(self, interface):
        assert self.there[interface.index].ours
        self.removed.append(interface.name)
        self.there[interface.index] = replace(interface, state=MISSING, ours=False)

    def holder(self, interface):
        assert not self.there[interface.index].ours
        return self._holder(interface)

    def refuses(self, interface, port):
        raise AssertionError('nobody asks here')

    def _holder(self, interface):
        network = self.on[interface.index]
        if self.clock() < self.aliens.get(network, 0):
            return ALIEN
        same = [other for other in self.there.values() if self.on[other.index] == network]
        return next((other.mac for other in same if other.state == USABLE), '')

    def attach(self, pattern='qr-+'):
        link_local.begin(self, pattern)
        return link_local.settle(self, pattern, clock=self.clock, sleep=self.clock.sleep)

    def states(self):
        return {found.name: found.state for found in self.interfaces()}


def qr(number, **fields):
    return Interface(number, f'qr-{number}', f'fa:16:3e:00:00:0{number}', **fields)


def test_the_fake_is_what_the_protocol_says():
    for name, method in inspect.getmembers(interface_state.Links, inspect.isfunction):
        if not name.startswith('_'):
            assert list(inspect.signature(getattr(FakeLinks, name)).parameters) == list(
                inspect.signature(method).parameters
            )


@pytest.mark.parametrize(
    ('pattern', 'name', 'matched'),
    [('qr-+', 'qr-1', True), ('qr-+', 'qr-', True), ('qr-+', 'qg-1', False), ('tap0', 'tap0', True),
     ('tap0', 'tap01', False), ('+', 'any', True), ('', 'any', False)],
)  # fmt: skip
def test_a_pattern_is_iptables_own(pattern, name, matched):
    assert link_local.matches(pattern, name) is matched


def test_every_internal_interface_gets_it_and_no_other():
    fake = FakeLinks(qr(1), qr(2), Interface(3, 'qg-3', 'fa:16:3e:00:00:03'))
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE, 'qr-2': USABLE, 'qg-3': MISSING}


def test_it_is_given_out_before_anybody_waits():
    fake = FakeLinks(qr(1))
    link_local.begin(fake, 'qr-+')
    assert (fake.added, fake.clock.slept) == (['qr-1'], [])


def test_a_second_time_changes_nothing_and_waits_for_nothing():
    fake = FakeLinks(qr(1), qr(2))
    fake.attach()
    fake.clock.slept.clear()
    assert fake.attach() == []
    assert (fake.added, fake.removed, fake.clock.slept) == (['qr-1', 'qr-2'], [], [])


def test_an_interface_that_came_later_gets_it_too():
    fake = FakeLinks(qr(1))
    fake.attach()
    fake.there[2], fake.on[2] = qr(2), 2
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE, 'qr-2': USABLE}


def test_a_second_interface_of_this_router_on_the_same_network_is_no_fault():
    """An IPv4 and an IPv6 subnet of one network have an interface each; one of them serves the guests of both."""
    fake = FakeLinks(qr(1), on={1: 'a'})
    fake.attach()
    fake.there[2], fake.on[2] = qr(2), 'a'
    fake.clock.slept.clear()
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE, 'qr-2': MISSING}
    # Asked instead of checked: each further attach costs nothing.
    assert (fake.added, fake.clock.slept) == (['qr-1'], [])
    assert link_local.lacking(fake, 'qr-+') == {}


def test_a_duplicate_is_taken_off_tried_again_and_given_up_with_its_holders_name():
    fake = FakeLinks(qr(1), qr(2), aliens={1: 1e9})
    (sentence,) = fake.attach()
    assert sentence == (
        f'fe80::a9fe:a9fe is not on qr-1, because {ALIEN} on its network has it (another DHCP agent of this network?); '
        'guests there are served over IPv4; attach it again when that one is gone'
    )
    assert fake.states() == {'qr-1': MISSING, 'qr-2': USABLE}
    assert fake.clock.slept.count(link_local.PAUSE_S) == 2
    assert link_local.lacking(fake, 'qr-+') == {qr(1): ALIEN}


def test_it_succeeds_when_the_other_goes_away_meanwhile():
    fake = FakeLinks(qr(1), aliens={1: 3.0})
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE}
    assert fake.removed == ['qr-1']


def test_a_duplicate_that_an_earlier_attach_left_is_checked_anew():
    """The kernel itself never checks it again (RFC 4862, 5.4)."""
    fake = FakeLinks(qr(1, state=DUPLICATE, ours=True))
    assert fake.attach() == []
    assert (fake.states(), fake.removed, fake.added) == ({'qr-1': USABLE}, ['qr-1'], ['qr-1'])


def test_somebody_elses_address_stays_whatever_its_state():
    fake = FakeLinks(qr(1, state=USABLE), qr(2, state=DUPLICATE))
    assert len(fake.attach()) == 1
    assert link_local.remove(fake) is False
    assert fake.states() == {'qr-1': USABLE, 'qr-2': DUPLICATE}


def test_an_interface_that_is_down_gets_it_and_is_not_waited_for():
    """The kernel checks it when the interface comes up."""
    fake = FakeLinks(qr(1, up=False))
    assert fake.attach() == []
    assert (fake.states(), fake.clock.slept) == ({'qr-1': CHECKING}, [])
    assert link_local.lacking(fake, 'qr-+') == {}


def test_an_interface_without_ipv6_is_left_alone_and_lacks_nothing():
    fake = FakeLinks(qr(1, has_ipv6=False))
    assert fake.attach() == []
    assert fake.added == []
    assert link_local.lacking(fake, 'qr-+') == {}


def test_a_check_without_end_is_not_waited_for_without_end():
    fake = FakeLinks(qr(1), check_s=1e6)
    assert fake.attach() == ['fe80::a9fe:a9fe on qr-1 is still being checked']
    assert fake.clock() <= link_local.PATIENCE_S + 0.1


def test_one_that_somebody_removed_is_lacking_with_nobody_to_blame():
    fake = FakeLinks(qr(1), qr(2))
    fake.attach()
    fake.remove(fake.there[1])
    assert link_local.lacking(fake, 'qr-+') == {qr(1): ''}


STATES = st.sampled_from(
    [{'has_ipv6': False}, {}, *({'state': state, 'ours': ours} for state in (USABLE, DUPLICATE) for ours in (0, 1))]
)
INTERFACES = st.lists(st.tuples(st.booleans(), STATES).map(lambda both: {'up': both[0], **both[1]}), max_size=4)
NETWORKS = st.lists(st.integers(1, 2), min_size=4, max_size=4)


@given(INTERFACES, NETWORKS, st.dictionaries(st.integers(1, 2), st.floats(0, 9)))
def test_what_is_attached_is_detached_and_what_was_not_ours_stays(found, networks, aliens):
    there = [qr(number, **fields) for number, fields in enumerate(found, 1)]
    fake = FakeLinks(*there, on=dict(enumerate(networks, 1)), aliens=aliens)
    before = {one.name: one.state for one in there if not one.ours}
    fake.attach()
    assert not [found for found in fake.interfaces() if found.ours and found.state == DUPLICATE]
    link_local.remove(fake)
    after = fake.states()
    assert {name: after[name] for name in before} == before
    assert link_local.remove(fake) is False
