# SPDX-License-Identifier: Apache-2.0
"""Which interfaces get fe80::a9fe:a9fe, and duplicates on their networks. With a real kernel: tests/netns."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.netns import interface_state, link_local
from metadata_wsgi.netns.interface_state import DUPLICATE, MISSING, TENTATIVE, USABLE, Interface
from tests.fakes import FakeClock

ALIEN = 'fa:16:3e:00:00:99'


class FakeInterfaceTable:
    """Interfaces on networks (``on``: index to network). DAD takes ``check_s`` of the clock.

    ``aliens`` are networks on which another host has the address, each with the time at which it leaves.
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
            if interface.state == TENTATIVE and self.clock() >= self.checked_at.get(index, 1e9):
                state = DUPLICATE if self._holder(interface) else USABLE
                self.there[index] = replace(interface, state=state)
        return list(self.there.values())

    def add(self, interface):
        assert interface.has_ipv6
        assert self.there[interface.index].state == MISSING
        self.added.append(interface.name)
        self.there[interface.index] = replace(interface, state=TENTATIVE, ours=True)
        if interface.up:
            self.checked_at[interface.index] = self.clock() + self.check_s

    def remove(self, interface):
        assert self.there[interface.index].ours
        self.removed.append(interface.name)
        self.there[interface.index] = replace(interface, state=MISSING, ours=False)

    def neighbour_mac(self, interface):
        assert not self.there[interface.index].ours
        return self._holder(interface)

    def refuses_connection(self, interface, port):
        raise AssertionError('not used here')

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


def test_fake_interface_table_matches_the_protocol():
    for name, method in inspect.getmembers(interface_state.InterfaceTable, inspect.isfunction):
        if not name.startswith('_'):
            assert list(inspect.signature(getattr(FakeInterfaceTable, name)).parameters) == list(
                inspect.signature(method).parameters
            )


@pytest.mark.parametrize(
    ('pattern', 'name', 'matched'),
    [('qr-+', 'qr-1', True), ('qr-+', 'qr-', True), ('qr-+', 'qg-1', False), ('tap0', 'tap0', True),
     ('tap0', 'tap01', False), ('+', 'any', True), ('', 'any', False)],
)  # fmt: skip
def test_interface_pattern_matches_as_in_iptables(pattern, name, matched):
    assert link_local.matches(pattern, name) is matched


def test_begin_returns_the_names_of_the_interfaces_that_it_changed():
    fake = FakeInterfaceTable(qr(1), qr(2), qr(3, state=USABLE, ours=True, has_own_address=False))
    assert link_local.begin(fake, 'qr-+') == (['qr-1', 'qr-2'], ['qr-3'])
    assert link_local.names_with_address(fake, 'qr-+') == ['qr-1', 'qr-2']
    assert link_local.begin(fake, 'qr-+') == ([], [])


def test_address_is_added_to_every_internal_interface_and_no_other():
    fake = FakeInterfaceTable(qr(1), qr(2), Interface(3, 'qg-3', 'fa:16:3e:00:00:03'))
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE, 'qr-2': USABLE, 'qg-3': MISSING}


def test_begin_adds_the_address_without_waiting_for_dad():
    fake = FakeInterfaceTable(qr(1))
    link_local.begin(fake, 'qr-+')
    assert (fake.added, fake.clock.slept) == (['qr-1'], [])


def test_second_attach_changes_nothing_and_does_not_wait():
    fake = FakeInterfaceTable(qr(1), qr(2))
    fake.attach()
    fake.clock.slept.clear()
    assert fake.attach() == []
    assert (fake.added, fake.removed, fake.clock.slept) == (['qr-1', 'qr-2'], [], [])


def test_interface_added_later_gets_the_address():
    fake = FakeInterfaceTable(qr(1))
    fake.attach()
    fake.there[2], fake.on[2] = qr(2), 2
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE, 'qr-2': USABLE}


def test_second_interface_of_the_router_on_the_same_network_is_no_duplicate():
    """An IPv4 and an IPv6 subnet of one network have an interface each; one of them serves the instances of both."""
    fake = FakeInterfaceTable(qr(1), on={1: 'a'})
    fake.attach()
    fake.there[2], fake.on[2] = qr(2), 'a'
    fake.clock.slept.clear()
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE, 'qr-2': MISSING}
    # Asked instead of checked: each further attach costs nothing.
    assert (fake.added, fake.clock.slept) == (['qr-1'], [])
    assert link_local.missing_addresses(fake, 'qr-+') == {}


def test_duplicate_is_removed_retried_and_reported_with_the_other_mac():
    fake = FakeInterfaceTable(qr(1), qr(2), aliens={1: 1e9})
    (message,) = fake.attach()
    assert message == (
        f'fe80::a9fe:a9fe is not on qr-1, because {ALIEN} on its network has it (another DHCP agent of this network?); '
        'instances there are served over IPv4; attach again when the other one is gone'
    )
    assert fake.states() == {'qr-1': MISSING, 'qr-2': USABLE}
    assert fake.clock.slept.count(link_local.DAD_RETRY_DELAY_S) == 2
    assert link_local.missing_addresses(fake, 'qr-+') == {qr(1): ALIEN}


def test_dad_retry_succeeds_when_the_duplicate_disappears():
    fake = FakeInterfaceTable(qr(1), aliens={1: 3.0})
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE}
    assert fake.removed == ['qr-1']


def test_duplicate_of_an_earlier_attach_is_removed_and_added_again():
    """The kernel itself never checks it again (RFC 4862, 5.4)."""
    fake = FakeInterfaceTable(qr(1, state=DUPLICATE, ours=True))
    assert fake.attach() == []
    assert (fake.states(), fake.removed, fake.added) == ({'qr-1': USABLE}, ['qr-1'], ['qr-1'])


def test_foreign_address_is_never_removed():
    fake = FakeInterfaceTable(qr(1, state=USABLE), qr(2, state=DUPLICATE))
    assert len(fake.attach()) == 1
    assert link_local.remove(fake) is False
    assert fake.states() == {'qr-1': USABLE, 'qr-2': DUPLICATE}


def test_interface_that_is_down_gets_the_address_and_is_not_waited_for():
    """The kernel checks it when the interface comes up."""
    fake = FakeInterfaceTable(qr(1, up=False))
    assert fake.attach() == []
    assert (fake.states(), fake.clock.slept) == ({'qr-1': TENTATIVE}, [])
    assert link_local.missing_addresses(fake, 'qr-+') == {}


def test_interface_without_ipv6_is_ignored():
    fake = FakeInterfaceTable(qr(1, has_ipv6=False))
    assert fake.attach() == []
    assert fake.added == []
    assert link_local.missing_addresses(fake, 'qr-+') == {}


def test_standby_interface_without_an_address_gets_none():
    """Every frame from it would have the MAC of the primary router, which is on another host."""
    fake = FakeInterfaceTable(qr(1, has_own_address=False), qr(2))
    assert fake.attach() == []
    assert fake.added == ['qr-2']
    assert link_local.missing_addresses(fake, 'qr-+') == {}
    assert link_local.standby_interfaces(fake, 'qr-+') == [qr(1, has_own_address=False)]


def test_address_is_removed_when_the_router_becomes_the_standby_and_added_when_it_is_primary():
    fake = FakeInterfaceTable(qr(1))
    fake.attach()
    fake.there[1] = replace(fake.there[1], has_own_address=False)
    assert fake.attach() == []
    assert (fake.removed, fake.states()) == (['qr-1'], {'qr-1': MISSING})
    fake.there[1] = replace(fake.there[1], has_own_address=True)
    assert fake.attach() == []
    assert fake.states() == {'qr-1': USABLE}


def test_dad_timeout_is_reported():
    fake = FakeInterfaceTable(qr(1), check_s=1e6)
    assert fake.attach() == ['fe80::a9fe:a9fe on qr-1 is still tentative']
    assert fake.clock() <= link_local.DAD_TIMEOUT_S + 0.1


def test_missing_address_that_no_neighbour_has():
    fake = FakeInterfaceTable(qr(1), qr(2))
    fake.attach()
    fake.remove(fake.there[1])
    assert link_local.missing_addresses(fake, 'qr-+') == {qr(1): ''}


STATES = st.sampled_from(
    [{'has_ipv6': False}, {}, *({'state': state, 'ours': ours} for state in (USABLE, DUPLICATE) for ours in (0, 1))]
)
INTERFACES = st.lists(st.tuples(st.booleans(), STATES).map(lambda both: {'up': both[0], **both[1]}), max_size=4)
NETWORKS = st.lists(st.integers(1, 2), min_size=4, max_size=4)


@given(INTERFACES, NETWORKS, st.dictionaries(st.integers(1, 2), st.floats(0, 9)))
def test_remove_undoes_attach_and_keeps_foreign_addresses(found, networks, aliens):
    there = [qr(number, **fields) for number, fields in enumerate(found, 1)]
    fake = FakeInterfaceTable(*there, on=dict(enumerate(networks, 1)), aliens=aliens)
    before = {one.name: one.state for one in there if not one.ours}
    fake.attach()
    assert not [found for found in fake.interfaces() if found.ours and found.state == DUPLICATE]
    link_local.remove(fake)
    after = fake.states()
    assert {name: after[name] for name in before} == before
    assert link_local.remove(fake) is False
