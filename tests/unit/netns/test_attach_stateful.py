# SPDX-License-Identifier: Apache-2.0
"""Attach, detach and watch in any order of events, with a kernel, workers and processes that are simulated.

Attacher, Reconciler, the keeper's Registry and its client are the real ones. Any call into the kernel may be the moment
at which a namespace disappears, or the keeper ends. With a real kernel: tests/netns/test_attach_stateful.py.
"""

import contextlib
import tempfile

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from metadata_wsgi.cli.reconciler import Reconciler
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import proxy_process
from metadata_wsgi.netns.rules import redirect_port
from metadata_wsgi.netns.target import MODES, NETWORK, ONE_HOP, PROCESS, ROUTER, SHARED, AttachTarget
from tests import state_machine
from tests.unit.netns.simulated_host import FOREIGN, HANDLES, SimulatedHost

TARGETS = [AttachTarget.of(ROUTER, 'router-a'), AttachTarget.of(ROUTER, 'router-b'), AttachTarget.of(NETWORK, 'net-c')]
PORTS = [9697, 9700]

targets = st.sampled_from(TARGETS)
modes = st.sampled_from(MODES)
interruptions = st.one_of(
    st.none(),
    st.tuples(st.integers(0, 12), st.sampled_from(['namespace is deleted', 'namespace is made again', 'keeper ends'])),
)


class AttachMachine(state_machine.StateMachine):
    """``attached`` is the model: the mode and port of each target that was attached and not detached since."""

    def __init__(self):
        super().__init__()
        self._exit = contextlib.ExitStack()
        self.host = SimulatedHost(self._exit.enter_context(tempfile.TemporaryDirectory()))
        for module, name, value in self.host.patches():
            self._exit.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        self.mode = SHARED
        self.reconciler = Reconciler(self.list_namespaces, self, clock=self.host.clock)
        self.watched = {}
        """The processes that watch has started or found, by target, as watch knows them."""
        self.unattended = set()
        """Namespaces whose rules are missing since the last attach: flushed, or the namespace was made again: the
        keeper's socket comes back before the rules do."""

    def teardown(self):
        self._exit.close()
        HANDLES.clear()

    @initialize(has_fdstore=st.booleans())
    def start(self, has_fdstore=False):
        self.host.has_fdstore = has_fdstore
        for target in TARGETS:
            self.host.make(target.namespace)
        for mode in (SHARED, ONE_HOP):
            self.host.start_worker(mode)
        self.host.start_keeper()

    # -- AttachActions of the reconciler

    def list_namespaces(self):
        return {(one.kind, one.uuid): self.host.identity(one.namespace) for one in TARGETS if self.exists(one)}

    def attach(self, keys):
        errors = self.errors(keys, lambda target: self.host.attacher.attach(target, mode=self.mode))
        for key in set(keys) - set(errors):
            self.watched.pop(key, None)
            if self.mode == PROCESS:
                self.watched[key] = self.host.processes[key[1]]
        return errors

    def detach(self, keys):
        errors = self.errors(keys, self.host.attacher.detach)
        for key in set(keys) - set(errors):
            self.watched.pop(key, None)
        return errors

    def errors(self, keys, action):
        errors = {}
        for key in keys:
            try:
                action(AttachTarget.of(*key))
            except NetnsError as error:
                errors[key] = str(error)
        return errors

    def in_keeper(self):
        try:
            return {(one.target.kind, one.target.uuid) for one in AttachmentsClient(self.host.state_path).entries()}
        except NetnsError:
            return None

    def ended(self):
        running = list(self.host.processes.values())
        ended = {key for key, process in self.watched.items() if process not in running}
        for key in ended:
            del self.watched[key]
        return ended

    # -- what is there

    def exists(self, target):
        return target.namespace in self.host.namespaces

    def own_ports(self, target):
        """The ports in the target's namespace on which a process of ours listens."""
        if not self.exists(target):
            return set()
        found = self.host.listening(self.host.namespaces[target.namespace].generation)
        return {one.port for one in found if set(one.owners) - {FOREIGN}}

    def entries(self, target):
        return [one for one in self.host.registry or () if one.id == target.uuid]

    def protection(self, target):
        """The port that the rules close and redirect, or the address of a network."""
        place = self.host.namespaces.get(target.namespace)
        if place is None:
            return None
        if target.kind == NETWORK:
            return 80 if place.has_address else None
        return redirect_port(place.rules)

    @contextlib.contextmanager
    def interrupted(self, target, interruption):
        """Something happens in the middle."""
        if interruption is not None:
            self.host.countdown, what = interruption
            self.host.interrupt = {
                'namespace is deleted': lambda: self.host.delete(target.namespace),
                'namespace is made again': lambda: self.make_again(target),
                'keeper ends': self.host.kill_keeper,
            }[what]
        try:
            yield
        finally:
            self.host.interrupt = None
            self.host.deliver()

    def make_again(self, target):
        self.host.delete(target.namespace)
        self.host.make(target.namespace)
        self.unattended.add(target.namespace)

    # -- rules

    @rule(where=targets, mode=modes, port=st.sampled_from(PORTS), interruption=interruptions)
    def attach_by_hand(self, where, mode, port, interruption):
        place = self.host.namespaces.get(where.namespace)
        had_protection, foreign = self.protection(where), self.foreign(where)
        entries = self.entries(where)
        try:
            with self.interrupted(where, interruption):
                self.host.attacher.attach(where, mode=mode, port=port)
        except NetnsError:
            if place is self.host.namespaces.get(where.namespace) and place and not had_protection:
                # Nothing is left of it, or what is left is served.
                assert not self.protection(where) or self.own_ports(where) or foreign
            if interruption is None and mode == PROCESS and had_protection and not foreign:
                # A program that does not start takes no served router down.
                assert self.entries(where) == entries
            return
        if interruption is not None:
            return
        port = 80 if where.kind == NETWORK else port
        if self.host.registry is not None or self.own_ports(where) == {port}:
            # Without rules and without a keeper, attach cannot know that another port is open too.
            self.unattended.discard(where.namespace)
        assert self.protection(where) == port
        assert port in self.own_ports(where)
        entries = self.entries(where)
        if mode == PROCESS:
            assert where.uuid in self.host.processes
            assert not entries
        else:
            assert where.uuid not in self.host.processes
            assert {(one.mode, one.port) for one in entries} == {(mode, port)}

    def foreign(self, target):
        place = self.host.namespaces.get(target.namespace)
        return place and any(FOREIGN in one.owners for one in self.host.listening(place.generation))

    @rule(where=targets, interruption=interruptions)
    def detach_by_hand(self, where, interruption):
        try:
            with self.interrupted(where, interruption):
                self.host.attacher.detach(where)
        except NetnsError:
            return
        if interruption is not None and interruption[1] == 'namespace is made again':
            return
        self.unattended.discard(where.namespace)
        assert self.own_ports(where) == set()
        assert self.protection(where) is None
        assert where.uuid not in self.host.processes
        assert self.entries(where) == []

    @rule(mode=modes)
    def watch_turns(self, mode):
        """Where all is well, each namespace is served after a turn, and nothing else is."""
        self.mode = mode
        self.host.clock.sleep(61.0)
        self.reconciler.reconcile()
        self.host.deliver()
        healthy = self.host.registry is not None and not self.host.program_fails
        for target in TARGETS:
            if healthy and self.exists(target) and not self.foreign(target):
                assert self.protection(target) is not None, target
                assert self.protection(target) in self.own_ports(target), target
                self.unattended.discard(target.namespace)
            elif healthy and not self.exists(target) and (target.kind, target.uuid) in self.reconciler._attached:
                raise AssertionError(f'{target} was not detached')

    @rule()
    def watch_wakes_after_a_process_has_ended(self):
        """It is started again now, and not by the next reconciliation of all targets."""
        running = list(self.host.processes.values())
        ended = [AttachTarget.of(*key) for key, process in self.watched.items() if process not in running]
        self.reconciler.reconcile()
        self.host.deliver()
        for target in ended:
            if self.host.registry is None or self.host.program_fails or self.foreign(target):
                continue
            if self.exists(target):
                assert self.protection(target) in self.own_ports(target), target
                self.unattended.discard(target.namespace)

    @rule()
    def keeper_ends_or_starts(self):
        if self.host.registry is None:
            self.host.start_keeper()
        else:
            self.host.kill_keeper()

    @rule(mode=st.sampled_from([SHARED, ONE_HOP]))
    def worker_starts(self, mode):
        if len(self.host.workers) < 4:
            self.host.start_worker(mode)

    @rule()
    def worker_is_killed(self):
        if self.host.workers:
            self.host.kill_worker()

    @rule()
    def keeper_and_workers_are_killed(self):
        self.host.kill_keeper()
        while self.host.workers:
            self.host.kill_worker()

    @rule(where=targets)
    def process_is_killed(self, where):
        self.host.end_process(where.uuid)

    @rule(where=targets)
    def namespace_is_deleted_or_made(self, where):
        if self.exists(where):
            self.host.delete(where.namespace)
        else:
            self.make_again(where)
        self.host.deliver()

    @rule(where=targets)
    def namespace_is_made_again(self, where):
        self.make_again(where)
        self.host.deliver()

    @rule(where=targets)
    def rules_are_flushed(self, where):
        if self.exists(where):
            self.host.namespaces[where.namespace].rules.clear()
            self.unattended.add(where.namespace)

    @rule(broken=st.booleans())
    def ipv6_rules_are_impossible(self, broken):
        self.host.ipv6_rules_fail = broken

    @rule(broken=st.booleans())
    def program_cannot_start(self, broken):
        self.host.program_fails = broken

    @rule(where=targets, port=st.sampled_from(PORTS))
    def another_program_listens_or_ends(self, where, port):
        place = self.host.namespaces.get(where.namespace)
        if place is None:
            return
        for one in self.host.listening(place.generation):
            if FOREIGN in one.owners:
                one.owners.remove(FOREIGN)
                return
        with contextlib.suppress(NetnsError):
            self.host.bind(place.generation, '', port, FOREIGN)

    # -- invariants

    @invariant()
    def a_port_of_ours_is_open_only_behind_its_rules(self):
        for target in TARGETS:
            if target.kind == ROUTER and target.namespace not in self.unattended:
                assert self.own_ports(target) <= {self.protection(target)}, target

    @invariant()
    def no_socket_stays_open_in_a_deleted_namespace(self):
        """While a keeper runs; a process of its own ends when watch detaches it."""
        if self.host.registry is None:
            return
        generations = {one.generation for one in self.host.namespaces.values()}
        for one in self.host.sockets:
            if one.generation not in generations:
                assert not [owner for owner in one.owners if owner != FOREIGN and 'process' not in owner]


def test_attach_detach_and_watch_leave_nothing_open_without_rules_after_any_events():
    state_machine.run(AttachMachine, runs=50, steps=30)


def test_port_of_a_process_stays_while_a_worker_may_have_its_socket():
    """The keeper ended while the socket was moved from it to the process, so a worker still has a copy."""
    target, reached = TARGETS[0], 0
    for countdown in range(40):
        machine = AttachMachine()
        try:
            machine.start()
            machine.host.attacher.attach(target, mode=ONE_HOP, port=9697)
            machine.host.deliver()
            with machine.interrupted(target, (countdown, 'keeper ends')), contextlib.suppress(NetnsError):
                machine.host.attacher.attach(target, mode=PROCESS, port=9697)
            if target.uuid not in machine.host.processes or machine.host.registry is not None:
                continue
            reached += 1
            with contextlib.suppress(NetnsError):
                machine.host.attacher.attach(target, mode=PROCESS, port=9700)
            machine.a_port_of_ours_is_open_only_behind_its_rules()
        finally:
            machine.teardown()
    assert reached


@pytest.mark.parametrize('target', [TARGETS[0], TARGETS[2]], ids=['router', 'network'])
@pytest.mark.parametrize('port', PORTS)
@pytest.mark.parametrize('mode', [SHARED, ONE_HOP])
def test_mode_process_with_a_program_that_does_not_start_leaves_the_former_mode(target, mode, port):
    """The keeper closes its socket for the second attempt to start the program. Requests were refused from then on."""
    machine = AttachMachine()
    try:
        machine.start()
        machine.host.attacher.attach(target, mode=mode, port=PORTS[0])
        machine.host.deliver()
        before = machine.entries(target)
        machine.host.program_fails = True
        with pytest.raises(NetnsError, match='the program does not start'):
            machine.host.attacher.attach(target, mode=PROCESS, port=port)
        machine.host.deliver()
        assert machine.entries(target) == before
        assert machine.own_ports(target) == {machine.protection(target)} == {before[0].port}
        assert {one.mode for one in before} == {mode}
    finally:
        machine.teardown()


def test_a_new_process_is_checked_again_while_descriptors_are_exhausted(tmp_path, monkeypatch):
    """The rules would be removed, and the process would serve without them."""
    host = SimulatedHost(str(tmp_path))
    for module, name, replacement in host.patches():
        monkeypatch.setattr(module, name, replacement)
    failures = [NetnsError('pid 1: Too many open files')] * 3

    def running_pid(pid_file, uuid):
        if host.processes and failures:
            raise failures.pop()
        return host.running_pid(pid_file, uuid)

    monkeypatch.setattr(proxy_process, 'running_pid', running_pid)
    host.make(TARGETS[0].namespace)
    host.attacher.attach(TARGETS[0], mode=PROCESS, port=9697)
    assert (list(host.processes), failures) == ([TARGETS[0].uuid], [])
    assert host.namespaces[TARGETS[0].namespace].rules
