# SPDX-License-Identifier: Apache-2.0
"""Attach and detach in any order with restarts, kills and deleted namespaces, with the real kernel and programs.

tests/unit/netns/test_attach_stateful.py has many more steps, with a simulated kernel.
"""

import contextlib
import os
import signal
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.rules import redirect_port
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import MODES, PROCESS, ROUTER, AttachTarget
from tests import state_machine
from tests.cloud import Cloud
from tests.e2e.conftest import BIN, eventually

from .keeper_host import KeeperHost
from .router_topology import ip

pytestmark = pytest.mark.netns

FAMILIES = (4, 6)
PORTS = (9697, 9700)
ALL_WORKERS = {'shared': 1, 'one_hop': 1}
indexes = st.sampled_from([0, 1])


class HostMachine(state_machine.StateMachine):
    """``attached`` is the model: mode and port of each router that is attached and has not been disturbed since."""

    def __init__(self):
        super().__init__()
        self._exit = contextlib.ExitStack()
        directory = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix='metadata-wsgi-')))
        directory.chmod(0o755)
        cloud = self._exit.enter_context(Cloud(directory))
        self.host = KeeperHost(directory, cloud)
        self._exit.callback(self.host.close)
        self.iptables = Iptables(SubprocessRunner())
        state_path = str(cloud.state_path)
        self.attacher = Attacher(
            SubprocessRunner(),
            proxy=ProxyCommand(program=str(BIN / 'quantum-ns-metadata-proxy'), state_path=state_path),
            iptables=self.iptables,
            keeper=self.host.attachments,
            families=FAMILIES,
        )
        self.targets = [AttachTarget.of(ROUTER, str(uuid.uuid4())) for _ in range(2)]
        self.attached = {}
        self.disturbed = set()
        self.has_keeper = True

    @initialize()
    def start(self):
        for target in self.targets:
            self.make(target)
        self.host.start()

    def teardown(self):
        with self._exit:
            for target in self.targets:
                self.delete(target)

    def make(self, target):
        ip('netns', 'add', target.namespace)
        ip('-n', target.namespace, 'link', 'set', 'lo', 'up')

    def delete(self, target):
        if namespaces.exists(target.namespace):
            ip('netns', 'delete', target.namespace)

    def state(self, target):
        """(open ports, the port that the rules close and redirect)."""
        if not namespaces.exists(target.namespace):
            return set(), None
        open_ports = {port for port in PORTS if proxy_process.is_port_open(target.namespace, port)}
        return open_ports, redirect_port(self.iptables.ours(target.namespace, families=FAMILIES))

    def settle(self):
        """Wait until each undisturbed router is served behind its rules, or has nothing."""

        def unexpected():
            found = {}
            for target in self.targets:
                mode_and_port = self.attached.get(target)
                port = mode_and_port and mode_and_port[1]
                expected = ({port} if port else set(), port)
                if target not in self.disturbed and self.state(target) != expected:
                    found[target] = self.state(target), expected
            return found

        eventually(lambda: not unexpected(), lambda: f'{unexpected()}\n{self.host.text()}')

    # -- rules

    @precondition(lambda self: self.has_keeper)
    @rule(index=indexes, mode=st.sampled_from(MODES), port=st.sampled_from(PORTS))
    def attach(self, index, mode, port):
        target = self.targets[index]
        if not namespaces.exists(target.namespace):
            with pytest.raises(NetnsError):
                self.attacher.attach(target, mode=mode, port=port)
            return
        self.attacher.attach(target, mode=mode, port=port)
        self.attached[target] = mode, port
        self.disturbed.discard(target)
        self.settle()
        entries = {(one.mode, one.port) for one in self.host.attachments.entries() if one.target.uuid == target.uuid}
        assert entries == (set() if mode == PROCESS else {(mode, port)})

    @precondition(lambda self: self.has_keeper)
    @rule(index=indexes)
    def detach(self, index):
        target = self.targets[index]
        self.attacher.detach(target)
        self.attached.pop(target, None)
        self.disturbed.discard(target)
        self.settle()

    @precondition(lambda self: not self.has_keeper)
    @rule(index=indexes)
    def detach_without_keeper(self, index):
        """A worker may serve on: then the rules stay."""
        target = self.targets[index]
        with pytest.raises(NetnsError):
            self.attacher.detach(target)
        open_ports, redirected = self.state(target)
        assert target in self.disturbed or open_ports <= {redirected}
        self.disturbed.add(target)

    @precondition(lambda self: self.has_keeper)
    @rule()
    def keeper_is_killed(self):
        self.host.keeper.kill(signal.SIGKILL)
        self.host.keeper.wait()
        self.has_keeper = False
        self.settle()

    @precondition(lambda self: not self.has_keeper)
    @rule()
    def keeper_starts(self):
        """The workers send their sockets back."""
        self.host.start_keeper()
        eventually(lambda: self.host.workers() == ALL_WORKERS, 'the workers are connected')
        self.has_keeper = True
        self.settle()

    @rule()
    def shared_proxy_is_killed_and_starts(self):
        """With the keeper nothing is lost; without it the sockets of mode shared are."""
        os.killpg(self.host.proxy.pid, signal.SIGKILL)
        self.host.proxy.wait()
        if not self.has_keeper:
            self.disturbed.update(target for target, (mode, _) in self.attached.items() if mode == 'shared')
        self.host.start_proxy()
        eventually(self.host.proxy.has_workers, 'the proxy has workers')
        if self.has_keeper:
            eventually(lambda: self.host.workers() == ALL_WORKERS, 'the workers are connected')
        self.settle()

    @rule(index=indexes)
    def namespace_is_deleted_or_made(self, index):
        target = self.targets[index]
        if namespaces.exists(target.namespace):
            self.delete(target)
        else:
            self.make(target)
        if target in self.attached:
            self.disturbed.add(target)
        self.settle()

    @rule(index=indexes)
    def rules_are_flushed(self, index):
        target = self.targets[index]
        if namespaces.exists(target.namespace):
            self.iptables.apply(target.namespace, (), families=FAMILIES)
            self.disturbed.add(target)


def test_router_is_served_behind_its_rules_or_has_nothing_after_any_events():
    state_machine.run(HostMachine, runs=2, steps=10, nightly_runs=40, shrink=False)
