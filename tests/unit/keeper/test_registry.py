# SPDX-License-Identifier: Apache-2.0
"""Registered listeners, and what subscribers are sent; sockets are fakes."""

import errno
from dataclasses import dataclass, replace

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.registry import Registry, Subscriber

A = Listener('shared', 'qrouter-a', 9697, router_id='a')
B = Listener('shared', 'qrouter-b', 9697, router_id='b')


@dataclass(eq=False)
class FakeSocket:
    """``generation`` is that of its namespace when it was opened; ``number`` is its inode number."""

    number: int
    generation: int
    closed: bool = False

    def close(self):
        self.closed = True


class FakeNamespaces:
    """``generation`` of each existing namespace; ``ports_in_use`` cannot be opened.

    ``checks`` are the results of the next checks of a socket: an exception, or a bool.
    """

    def __init__(self):
        self.generation = {'qrouter-a': 1, 'qrouter-b': 1}
        self.ports_in_use = set()
        self.opened = []
        self.checks = []

    def open(self, listener):
        if listener.port in self.ports_in_use or listener.namespace not in self.generation:
            raise NetnsError('port in use')
        self.opened.append(FakeSocket(len(self.opened), self.generation[listener.namespace]))
        return self.opened[-1]

    def is_valid(self, listener, sock):
        if self.checks:
            result = self.checks.pop(0)
            if isinstance(result, Exception):
                raise result
            return result
        return sock.generation == self.generation.get(listener.namespace)

    def inode(self, sock):
        return sock.number

    def namespace_exists(self, listener):
        return listener.namespace in self.generation


class FakeStore:
    """As systemd's: a socket is stored under one name only; a second name for it is ignored."""

    def __init__(self):
        self.stored = {}

    def add(self, listener, sock):
        if sock.number not in [one.number for one in self.stored.values()]:
            self.stored[listener] = sock

    def remove(self, listener):
        self.stored.pop(listener, None)


@pytest.fixture
def namespaces():
    return FakeNamespaces()


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
def registry(namespaces, store):
    return Registry(namespaces, store)


def subscribe(registry, mode='shared'):
    subscriber = Subscriber(mode)
    registry.subscribe(subscriber)
    return subscriber


def sent(subscriber):
    """What was queued for it since the last call: ('serve', key) and so on."""
    packets = [(verb, value['router_id'] if verb == 'serve' else value) for packet, _ in subscriber.queue
               for verb, value in packet.items()]  # fmt: skip
    subscriber.queue.clear()
    return packets


def test_register_twice_changes_nothing(registry, namespaces):
    assert registry.register(A) is True
    assert registry.register(A) is False
    assert len(namespaces.opened) == 1


def test_subscriber_is_sent_all_listeners_and_then_each_change(registry):
    registry.register(A)
    subscriber = subscribe(registry)
    assert sent(subscriber) == [('serve', 'a'), ('complete', True)]
    registry.register(B)
    registry.unregister('a')
    assert sent(subscriber) == [('serve', 'b'), ('leave', 'a')]
    registry.unsubscribe(subscriber)
    registry.unregister('b')
    assert sent(subscriber) == []


def test_subscriber_is_sent_only_listeners_of_its_mode(registry):
    other = subscribe(registry, 'one_hop')
    registry.register(A)
    registry.unregister('a')
    assert sent(other) == [('complete', True)]
    assert registry.subscriber_counts() == {'one_hop': 1}


def test_register_with_another_mode_keeps_the_socket(registry, namespaces):
    shared, one_hop = subscribe(registry), subscribe(registry, 'one_hop')
    registry.register(A)
    sent(shared), sent(one_hop)
    assert registry.register(replace(A, mode='one_hop')) is True
    assert (sent(shared), sent(one_hop)) == ([('leave', 'a')], [('serve', 'a')])
    assert [sock.closed for sock in namespaces.opened] == [False]


def test_register_with_another_port_opens_before_it_closes(registry, namespaces):
    registry.register(A)
    namespaces.ports_in_use.add(9000)
    with pytest.raises(NetnsError):
        registry.register(replace(A, port=9000))
    assert (list(registry), namespaces.opened[0].closed) == ([A], False)
    assert registry.register(replace(A, port=9001)) is True
    assert [sock.closed for sock in namespaces.opened] == [True, False]


def test_register_with_a_handed_over_socket_opens_none(registry, namespaces):
    handed_over = FakeSocket(99, generation=1)
    assert registry.register(A, handed_over) is True
    assert (namespaces.opened, handed_over.closed) == ([], False)
    again = FakeSocket(99, generation=1)
    assert registry.register(A, again) is False
    assert again.closed


@pytest.mark.parametrize('host', ['', '169.254.169.254'])
def test_a_detach_before_the_worker_sends_its_socket_back_is_not_undone(registry, host):
    """After a restart of the keeper: nothing is registered yet."""
    listener = replace(A, host=host)
    assert registry.unregister_all('a') is False
    assert registry.restore_from_worker(listener, FakeSocket(1, generation=1)) is False
    assert registry.restore_from_worker(B, FakeSocket(2, generation=1)) is True
    registry.register(listener)
    registry.close()
    assert registry.restore_from_worker(listener, FakeSocket(3, generation=1)) is True


def test_a_handed_over_socket_of_another_port_replaces_the_registered_one(registry, namespaces):
    registry.register(A)
    handed_over = FakeSocket(99, generation=1)
    assert registry.register(replace(A, port=9000), handed_over) is True
    assert (namespaces.opened[0].closed, handed_over.closed) == (True, False)
    assert registry.socket_of(A.key) == (replace(A, port=9000), handed_over)


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_a_handed_over_socket_replaces_a_registered_one_that_is_another_socket(registry, namespaces, store, mode):
    """As for ``adopt`` while the keeper still has a socket beside haproxy: haproxy's socket is the one to accept on."""
    worker = Subscriber(mode)
    registry.register(A)
    registry.subscribe(worker)
    worker.queue.clear()
    handed_over = FakeSocket(99, generation=1)
    wanted = replace(A, mode=mode)
    assert registry.register(wanted, handed_over) is True
    assert (namespaces.opened[0].closed, handed_over.closed) == (True, False)
    assert registry.socket_of(A.key) == (wanted, handed_over)
    assert store.stored == {wanted: handed_over}
    assert worker.queue[-1] == ({'serve': wanted.to_json()}, handed_over)


@pytest.mark.parametrize('mode', ['shared', 'one_hop'])
def test_a_handed_over_socket_that_is_registered_already_is_closed(registry, namespaces, mode):
    registry.register(A)
    handed_over = FakeSocket(namespaces.opened[0].number, generation=1)
    assert registry.register(replace(A, mode=mode), handed_over) is (mode != A.mode)
    assert (namespaces.opened[0].closed, handed_over.closed) == (False, True)


def test_register_refuses_a_handed_over_socket_of_another_namespace(registry):
    with pytest.raises(ValueError, match='does not listen there'):
        registry.register(A, FakeSocket(99, generation=7))
    assert list(registry) == []


def test_reconcile_reopens_in_a_new_namespace_and_closes_where_it_is_gone(registry, namespaces):
    registry.register(A)
    registry.register(B)
    subscriber = subscribe(registry)
    sent(subscriber)
    assert registry.reconcile() == []
    namespaces.generation = {'qrouter-a': 2}
    assert registry.reconcile() == [(A, True), (B, False)]
    assert sent(subscriber) == [('leave', 'a'), ('serve', 'a'), ('leave', 'b')]
    assert [sock.closed for sock in namespaces.opened] == [True, True, False]
    assert list(registry) == [A]


def test_reconcile_closes_what_cannot_be_reopened(registry, namespaces):
    registry.register(A)
    namespaces.generation['qrouter-a'] = 2
    namespaces.ports_in_use.add(A.port)
    assert registry.reconcile() == [(A, False)]
    assert list(registry) == []


def test_reconcile_without_descriptors_left_closes_nothing(registry, namespaces):
    """The check of a socket's namespace needs a descriptor. Its failure does not mean that the namespace is deleted."""
    registry.register(A)
    registry.register(B)
    namespaces.checks = [False, OSError(errno.EMFILE, 'Too many open files')]
    with pytest.raises(OSError, match='Too many open files'):
        registry.reconcile()
    assert list(registry) == [A, B]
    assert [sock.closed for sock in namespaces.opened] == [False, False]


def test_reconcile_keeps_a_socket_that_is_valid_again(registry, namespaces):
    registry.register(A)
    namespaces.checks = [False, True]
    assert registry.reconcile() == []
    assert (list(registry), namespaces.opened[0].closed) == ([A], False)


def test_socket_is_registered_once_whatever_ids_a_worker_sends_with_it(registry):
    """Otherwise a worker could exhaust the keeper's descriptors with copies of one socket."""
    assert registry.restore_from_worker(A, FakeSocket(5, generation=1)) is True
    copy = FakeSocket(5, generation=1)
    assert registry.restore_from_worker(replace(A, router_id='forged'), copy) is False
    assert (list(registry), copy.closed) == ([A], True)
    registry.unregister('a')
    assert registry.restore_from_worker(replace(A, router_id='c'), FakeSocket(5, generation=1)) is True


def test_register_replaces_a_socket_of_a_former_namespace(registry, namespaces):
    registry.register(A)
    namespaces.generation['qrouter-a'] = 2
    assert registry.register(A) is True
    assert [sock.closed for sock in namespaces.opened] == [True, False]


def test_restore_from_worker_registers_its_socket(registry):
    offered = FakeSocket(5, generation=1)
    assert registry.restore_from_worker(A, offered) is True
    assert (list(registry), offered.closed) == ([A], False)
    twin = FakeSocket(5, generation=1)
    assert registry.restore_from_worker(A, twin) is True
    assert twin.closed


@pytest.mark.parametrize(
    'why', ['unregistered meanwhile', 'its namespace was replaced', 'another socket is registered']
)
def test_restore_from_worker_is_refused(registry, namespaces, why):
    if why == 'unregistered meanwhile':
        registry.unregister('a')
    if why == 'its namespace was replaced':
        namespaces.generation['qrouter-a'] = 2
    if why == 'another socket is registered':
        registry.register(A)
    offered = FakeSocket(5, generation=1)
    assert registry.restore_from_worker(A, offered) is False
    assert offered.closed


def test_restore_from_worker_after_unregister_and_register(registry, namespaces):
    registry.unregister('a')
    registry.register(A)
    assert registry.restore_from_worker(A, FakeSocket(0, generation=1)) is True


def test_listener_that_is_closed_before_it_was_sent_is_not_sent(registry):
    subscriber = subscribe(registry)
    registry.register(A)
    registry.unregister('a')
    assert sent(subscriber) == [('complete', True), ('leave', 'a')]


def test_fdstore_has_the_registered_sockets_after_every_change(registry, namespaces, store):
    def agrees():
        return {listener.key: sock.number for listener, sock in store.stored.items()} == registered()

    def registered():
        subscribers = subscribe(registry), subscribe(registry, 'one_hop')
        packets = [packet for one in subscribers for packet in one.queue]
        for one in subscribers:
            registry.unsubscribe(one)
        return {Listener.from_json(packet['serve']).key: sock.number for packet, sock in packets if 'serve' in packet}

    registry.register(A)
    registry.register(B)
    assert (set(store.stored), agrees()) == ({A, B}, True)
    registry.register(replace(A, mode='one_hop'))
    assert (set(store.stored), agrees()) == ({replace(A, mode='one_hop'), B}, True)
    registry.register(replace(A, port=9000))
    assert (set(store.stored), agrees()) == ({replace(A, port=9000), B}, True)
    namespaces.generation = {'qrouter-a': 2}
    registry.reconcile()
    assert (set(store.stored), agrees()) == ({replace(A, port=9000)}, True)
    registry.unregister('a')
    assert store.stored == {}


def test_fdstore_keeps_its_sockets_when_the_registry_is_closed(registry, store):
    registry.register(A)
    registry.close()
    assert set(store.stored) == {A}


def test_fdstore_gets_sockets_restored_from_workers(registry, store):
    registry.restore_from_worker(A, FakeSocket(5, generation=1))
    assert set(store.stored) == {A}


def test_restore_from_store_registers_valid_sockets_and_removes_others(namespaces, store):
    valid, invalid = FakeSocket(5, generation=1), FakeSocket(6, generation=7)
    store.stored = {A: valid, B: invalid}
    registry = Registry(namespaces, store)
    assert (registry.restore_from_store(A, valid), registry.restore_from_store(B, invalid)) == (True, False)
    assert (list(registry), set(store.stored), valid.closed, invalid.closed) == ([A], {A}, False, True)
