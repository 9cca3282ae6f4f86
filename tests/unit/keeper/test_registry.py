# SPDX-License-Identifier: Apache-2.0
"""What is kept, what is replaced, and what the workers hear of it; sockets are names here."""

from dataclasses import dataclass, replace

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.registry import Follower, Registry

A = Listener('shared', 'qrouter-a', 9697, router_id='a')
B = Listener('shared', 'qrouter-b', 9697, router_id='b')


@dataclass(eq=False)
class FakeSocket:
    """In generation ``of`` of its namespace; ``number`` is what the kernel knows it by."""

    number: int
    of: int
    closed: bool = False

    def close(self):
        self.closed = True


class FakeNamespaces:
    """``generation`` of each namespace that there is; ``refuses`` are ports that are in use."""

    def __init__(self):
        self.generation = {'qrouter-a': 1, 'qrouter-b': 1}
        self.refuses = set()
        self.opened = []

    def open(self, listener):
        if listener.port in self.refuses or listener.namespace not in self.generation:
            raise NetnsError('refused')
        self.opened.append(FakeSocket(len(self.opened), self.generation[listener.namespace]))
        return self.opened[-1]

    def fits(self, listener, kept):
        return kept.of == self.generation.get(listener.namespace)

    def are_one(self, kept, other):
        return kept.number == other.number

    def is_gone(self, listener):
        return listener.namespace not in self.generation


class FakeStore:
    """As systemd's: a socket is held under one name only, and a second one is not heard."""

    def __init__(self):
        self.held = {}

    def keep(self, listener, kept):
        if kept.number not in [one.number for one in self.held.values()]:
            self.held[listener] = kept

    def forget(self, listener):
        self.held.pop(listener, None)


@pytest.fixture
def there():
    return FakeNamespaces()


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
def registry(there, store):
    return Registry(there, store)


def follow(registry, mode='shared'):
    follower = Follower(mode)
    registry.follow(follower)
    return follower


def heard(follower):
    """What it was told since the last time: ('serve', key) and so on."""
    packets = [(verb, value['router_id'] if verb == 'serve' else value) for packet, _ in follower.waiting
               for verb, value in packet.items()]  # fmt: skip
    follower.waiting.clear()
    return packets


def test_a_second_time_changes_nothing(registry, there):
    assert registry.attach(A) is True
    assert registry.attach(A) is False
    assert len(there.opened) == 1


def test_a_follower_hears_what_is_there_and_then_each_change(registry):
    registry.attach(A)
    follower = follow(registry)
    assert heard(follower) == [('serve', 'a'), ('complete', True)]
    registry.attach(B)
    registry.detach('a')
    assert heard(follower) == [('serve', 'b'), ('leave', 'a')]
    registry.unfollow(follower)
    registry.detach('b')
    assert heard(follower) == []


def test_a_follower_hears_only_of_its_mode(registry):
    other = follow(registry, 'one_hop')
    registry.attach(A)
    registry.detach('a')
    assert heard(other) == [('complete', True)]
    assert registry.followers() == {'one_hop': 1}


def test_another_mode_serves_the_same_socket(registry, there):
    shared, one_hop = follow(registry), follow(registry, 'one_hop')
    registry.attach(A)
    heard(shared), heard(one_hop)
    assert registry.attach(replace(A, mode='one_hop')) is True
    assert (heard(shared), heard(one_hop)) == ([('leave', 'a')], [('serve', 'a')])
    assert [kept.closed for kept in there.opened] == [False]


def test_another_port_is_opened_before_the_former_is_closed(registry, there):
    registry.attach(A)
    there.refuses.add(9000)
    with pytest.raises(NetnsError):
        registry.attach(replace(A, port=9000))
    assert (list(registry), there.opened[0].closed) == ([A], False)
    assert registry.attach(replace(A, port=9001)) is True
    assert [kept.closed for kept in there.opened] == [True, False]


def test_a_socket_that_was_taken_over_is_kept_and_none_opened(registry, there):
    taken = FakeSocket(99, of=1)
    assert registry.attach(A, taken) is True
    assert (there.opened, taken.closed) == ([], False)
    again = FakeSocket(99, of=1)
    assert registry.attach(A, again) is False
    assert again.closed


def test_a_socket_of_somewhere_else_is_not_kept(registry):
    with pytest.raises(ValueError, match='does not listen there'):
        registry.attach(A, FakeSocket(99, of=7))
    assert list(registry) == []


def test_a_namespace_made_anew_is_entered_again_and_one_that_is_gone_let_go(registry, there):
    registry.attach(A)
    registry.attach(B)
    follower = follow(registry)
    heard(follower)
    assert registry.look_after() == []
    there.generation = {'qrouter-a': 2}
    assert registry.look_after() == [(A, True), (B, False)]
    assert heard(follower) == [('leave', 'a'), ('serve', 'a'), ('leave', 'b')]
    assert [kept.closed for kept in there.opened] == [True, True, False]
    assert list(registry) == [A]


def test_a_namespace_that_cannot_be_entered_yet_is_let_go(registry, there):
    registry.attach(A)
    there.generation['qrouter-a'] = 2
    there.refuses.add(A.port)
    assert registry.look_after() == [(A, False)]
    assert list(registry) == []


def test_an_attach_replaces_a_socket_of_a_former_namespace(registry, there):
    registry.attach(A)
    there.generation['qrouter-a'] = 2
    assert registry.attach(A) is True
    assert [kept.closed for kept in there.opened] == [True, False]


def test_a_worker_hands_back_what_it_has(registry):
    handed = FakeSocket(5, of=1)
    assert registry.adopt(A, handed) is True
    assert (list(registry), handed.closed) == ([A], False)
    twin = FakeSocket(5, of=1)
    assert registry.adopt(A, twin) is True
    assert twin.closed


@pytest.mark.parametrize('why', ['detached meanwhile', 'its namespace is another', 'another socket took its place'])
def test_what_must_not_come_back_is_refused(registry, there, why):
    if why == 'detached meanwhile':
        registry.detach('a')
    if why == 'its namespace is another':
        there.generation['qrouter-a'] = 2
    if why == 'another socket took its place':
        registry.attach(A)
    handed = FakeSocket(5, of=1)
    assert registry.adopt(A, handed) is False
    assert handed.closed


def test_what_was_detached_may_be_attached_and_handed_back_again(registry, there):
    registry.detach('a')
    registry.attach(A)
    assert registry.adopt(A, FakeSocket(0, of=1)) is True


def test_what_is_closed_before_it_was_sent_is_not_sent(registry):
    follower = follow(registry)
    registry.attach(A)
    registry.detach('a')
    assert heard(follower) == [('complete', True), ('leave', 'a')]


def test_the_store_holds_what_is_kept_through_every_change(registry, there, store):
    def agrees():
        return {listener.key: kept.number for listener, kept in store.held.items()} == there_is(registry)

    def there_is(registry):
        follower = follow(registry), follow(registry, 'one_hop')
        packets = [packet for one in follower for packet in one.waiting]
        for one in follower:
            registry.unfollow(one)
        return {Listener.from_json(said['serve']).key: kept.number for said, kept in packets if 'serve' in said}

    registry.attach(A)
    registry.attach(B)
    assert (set(store.held), agrees()) == ({A, B}, True)
    registry.attach(replace(A, mode='one_hop'))
    assert (set(store.held), agrees()) == ({replace(A, mode='one_hop'), B}, True)
    registry.attach(replace(A, port=9000))
    assert (set(store.held), agrees()) == ({replace(A, port=9000), B}, True)
    there.generation = {'qrouter-a': 2}
    registry.look_after()
    assert (set(store.held), agrees()) == ({replace(A, port=9000)}, True)
    registry.detach('a')
    assert store.held == {}


def test_the_end_of_the_keeper_is_not_the_end_of_what_is_stored(registry, store):
    registry.attach(A)
    registry.close()
    assert set(store.held) == {A}


def test_what_a_worker_hands_back_is_stored_too(registry, store):
    registry.adopt(A, FakeSocket(5, of=1))
    assert set(store.held) == {A}


def test_what_was_stored_is_kept_again_where_it_fits_and_forgotten_elsewhere(there, store):
    fits, does_not = FakeSocket(5, of=1), FakeSocket(6, of=7)
    store.held = {A: fits, B: does_not}
    registry = Registry(there, store)
    assert (registry.take_back(A, fits), registry.take_back(B, does_not)) == (True, False)
    assert (list(registry), set(store.held), fits.closed, does_not.closed) == ([A], {A}, False, True)
