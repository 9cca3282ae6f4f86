# SPDX-License-Identifier: Apache-2.0
"""Keeper, its client and workers' subscriptions in any order of events, with real sockets (``loopback_keeper``)."""

import contextlib
import itertools
import os
import socket
import tempfile
import time
import types
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client, protocol, server, worker_client
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.netns import namespaces as real_namespaces
from tests import state_machine
from tests.e2e.conftest import eventually
from tests.unit.keeper.loopback_keeper import (
    PORTS,
    ROUTERS,
    LoopbackNamespaces,
    RecordedSocket,
    RunningKeeper,
    RunningWorker,
    StoredSockets,
)

POLL_S = 0.02
MAX_WORKERS = 3

routers = st.sampled_from(ROUTERS)
modes = st.sampled_from(protocol.MODES)
ports = st.sampled_from(PORTS)


NO_DELAYS_S = itertools.repeat(0.001)


class KeeperMachine(state_machine.StateMachine):
    """``registered`` is the model: each router's listener, and the generation of the namespace in which it is."""

    def __init__(self):
        super().__init__()
        self._exit = contextlib.ExitStack()
        self.state_path = self._exit.enter_context(tempfile.TemporaryDirectory())
        self.namespaces = LoopbackNamespaces()
        self.patch(server, 'POLL_S', POLL_S)
        self.patch(real_namespaces, 'changed_at', lambda: float(self.namespaces.changes))
        self.patch(worker_client, 'socket', types.SimpleNamespace(**{**vars(socket), 'socket': RecordedSocket}))
        self.descriptors = len(os.listdir('/proc/self/fd'))
        self.keeper = self.store = None
        self.workers = []
        self.registered = {}
        self.foreign = {}

    def patch(self, module, name, value):
        self._exit.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    def teardown(self):
        with self._exit:
            for worker in self.workers:
                worker.kill()
            if self.keeper is not None:
                self.keeper.kill()
            for listener in list(self.store.stored) if self.store else ():
                self.store.remove(listener)
            for sock in self.foreign.values():
                sock.close()
            assert len(os.listdir('/proc/self/fd')) == self.descriptors

    @initialize(with_store=st.booleans())
    def start(self, with_store):
        self.store = StoredSockets() if with_store else None
        for name in ROUTERS:
            self.namespaces.make(name)
        self.start_keeper()

    # -- model

    def is_present(self, name):
        return self.registered[name][1] == self.namespaces.generation.get(name)

    def is_held(self, name):
        """Whether a worker or the store has the socket, so that a new keeper gets it."""
        listener = self.registered[name][0]
        return (self.store is not None and listener in self.store.stored) or any(
            worker.served.get(listener.key) == listener for worker in self.workers
        )

    def lose(self, names):
        for name in names:
            del self.registered[name]

    def start_keeper(self):
        self.lose([name for name in self.registered if not (self.is_present(name) and self.is_held(name))])
        self.keeper = RunningKeeper(self.state_path, self.namespaces, self.store)

    @contextlib.contextmanager
    def client(self, delays_s=NO_DELAYS_S):
        """``delays_s``: the delays between the attempts while a port is in use."""
        with admin_client.connect(self.state_path) as keeper:
            keeper._sleep, keeper._find_process = lambda _: time.sleep(next(delays_s)), lambda _: None
            yield keeper

    def settle(self):
        """Wait until keeper, workers and kernel are as the model says."""
        eventually(lambda: self.observed() == self.expected(), lambda: f'{self.observed()} != {self.expected()}')

    def observed(self):
        keeper = None
        if self.keeper is not None:
            with self.client() as client:
                found, subscribed = client.list()
            keeper = {one.key: one for one in found}, subscribed
        return keeper, [dict(worker.served) for worker in self.workers], self.namespaces.open_ports()

    def expected(self):
        listeners_ = {listener.key: listener for listener, _ in self.registered.values()}
        open_ports = {key for key in self.foreign if key[2] == self.namespaces.generation.get(key[0])}
        if self.keeper is None:
            # The workers go on.
            kept = [name for name in self.registered if self.is_present(name) and self.is_held(name)]
            keeper, served = None, [dict(worker.served) for worker in self.workers]
        else:
            kept = list(self.registered)
            keeper = listeners_, dict(Counter(worker.mode for worker in self.workers))
            served = [
                {key: one for key, one in listeners_.items() if one.mode == worker.mode} for worker in self.workers
            ]
        return (
            keeper,
            served,
            {key[:2] for key in open_ports} | {(name, self.registered[name][0].port) for name in kept},
        )

    def register(self, client, name, port, mode, handed_over=None):
        """Register, and compare the outcome with the model."""
        listener = Listener(mode, name, port, router_id=name)
        generation = self.namespaces.generation.get(name)
        in_use = (name, port, generation) in self.foreign and handed_over is None
        if generation is None or in_use:
            with pytest.raises(NetnsError):
                client.register(listener, handed_over)
            return
        client.register(listener, handed_over)
        self.registered[name] = listener, generation

    # -- root's requests

    @precondition(lambda self: self.keeper is not None)
    @rule(name=routers, port=ports, mode=modes)
    def attach(self, name, port, mode):
        with self.client() as client:
            self.register(client, name, port, mode)
        self.settle()

    @precondition(lambda self: self.keeper is not None)
    @rule(name=routers)
    def detach(self, name):
        with self.client() as client:
            assert client.unregister_all(name) == (name in self.registered)
        self.registered.pop(name, None)
        self.settle()

    @precondition(lambda self: self.keeper is None)
    @rule(name=routers)
    def requests_without_keeper_are_refused(self, name):
        with pytest.raises(NetnsError), self.client() as client:
            client.unregister_all(name)

    @precondition(lambda self: self.keeper is not None and self.foreign)
    @rule(mode=modes, data=st.data())
    def adopt(self, mode, data):
        """The socket of another program is registered, and the program ends."""
        name, port, generation = data.draw(st.sampled_from(sorted(self.foreign)))
        sock = self.foreign.pop((name, port, generation))
        with self.client() as client:
            if generation == self.namespaces.generation.get(name):
                self.register(client, name, port, mode, sock)
            else:
                with pytest.raises(NetnsError):
                    client.register(Listener(mode, name, port, router_id=name), sock)
        sock.close()
        self.settle()

    @precondition(lambda self: self.keeper is not None and self.registered)
    @rule(data=st.data())
    def give_back(self, data):
        """Another program listens beside the keeper's socket, and then the keeper closes it."""
        name = data.draw(st.sampled_from(sorted(self.registered)))
        if not self.is_present(name):
            return
        listener, generation = self.registered.pop(name)
        # As metadata-wsgi-haproxy opens its sockets, which a haproxy may share.
        sock = socket.create_server((self.namespaces.address(name), listener.port), reuse_port=True)
        self.foreign[name, listener.port, generation] = sock
        with self.client() as client:
            assert client.unregister_all(name)
        self.settle()

    # -- processes

    @precondition(lambda self: self.keeper is not None)
    @rule()
    def keeper_is_killed(self):
        self.keeper.kill()
        self.keeper = None
        self.settle()

    @precondition(lambda self: self.keeper is None)
    @rule()
    def keeper_starts(self):
        self.start_keeper()
        self.settle()

    @precondition(lambda self: self.keeper is None)
    @rule(name=routers)
    def keeper_starts_and_detaches_at_once(self, name):
        """Before the workers have sent their sockets back."""
        with self.held_workers():
            self.start_keeper()
            with self.client() as client:
                client.unregister_all(name)
        self.registered.pop(name, None)
        self.settle()

    @precondition(lambda self: self.keeper is None)
    @rule(name=routers, port=ports, mode=modes)
    def keeper_starts_and_attaches_at_once(self, name, port, mode):
        """While the port is in use by a worker that has not sent its socket back."""
        self.start_keeper()
        is_foreign = (name, port, self.namespaces.generation.get(name)) in self.foreign
        # On a busy machine the worker may need seconds.
        delays_s = itertools.repeat(0.001) if is_foreign else itertools.chain([0.05] * 15, itertools.repeat(5.0))
        with self.client(delays_s) as client:
            self.register(client, name, port, mode)
        self.settle()

    @contextlib.contextmanager
    def held_workers(self):
        """The workers do not connect before the end of the block."""
        for worker in self.workers:
            worker.may_connect.clear()
        try:
            yield
        finally:
            for worker in self.workers:
                worker.may_connect.set()

    @precondition(lambda self: len(self.workers) < MAX_WORKERS)
    @rule(mode=modes)
    def worker_starts(self, mode):
        self.workers.append(RunningWorker(self.state_path, mode))
        self.settle()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def worker_is_killed(self, data):
        self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1))).kill()
        self.settle()

    @precondition(lambda self: self.keeper is not None)
    @rule()
    def all_are_killed(self):
        self.keeper.kill()
        self.keeper = None
        while self.workers:
            self.workers.pop().kill()
        self.settle()

    # -- the host

    @rule(name=routers)
    def namespace_is_deleted_or_made(self, name):
        if name in self.namespaces.generation:
            self.namespaces.delete(name)
            if self.keeper is not None:
                self.registered.pop(name, None)
        else:
            self.namespaces.make(name)
        self.settle()

    @rule(name=routers)
    def namespace_is_made_again(self, name):
        # At once: otherwise the keeper may see that there is none, and forget it.
        self.namespaces.make(name)
        if self.keeper is not None and name in self.registered:
            self.registered[name] = self.registered[name][0], self.namespaces.generation[name]
        self.settle()

    @rule(name=routers, port=ports)
    def another_program_listens(self, name, port):
        generation = self.namespaces.generation.get(name)
        if generation is None or (name, port) in self.namespaces.open_ports():
            return
        self.foreign[name, port, generation] = socket.create_server(
            (self.namespaces.address(name), port), reuse_port=True
        )

    @precondition(lambda self: self.foreign)
    @rule(data=st.data())
    def another_program_ends(self, data):
        self.foreign.pop(data.draw(st.sampled_from(sorted(self.foreign)))).close()
        self.settle()


def test_keeper_and_workers_agree_after_any_events():
    state_machine.run(KeeperMachine, runs=15, steps=30, shrink=False)
