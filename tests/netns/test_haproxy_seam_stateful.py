# SPDX-License-Identifier: Apache-2.0
"""haproxy, ``metadata-wsgi-haproxy``, ``adopt`` and ``give-back`` in any order, with kills and restarts in between.

With real namespaces and programs. Whatever happens, the instances of a router whose proxy the agent has started are
served, and a router without a proxy has no listener.
"""

import contextlib
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.netns import haproxy, proxy_process
from tests import state_machine
from tests.e2e.conftest import eventually
from tests.netns.neutron_node import SHIM, Node, is_alive

pytestmark = [
    pytest.mark.netns,
    pytest.mark.not_traced,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces'),
]

PORT = 9697
HAPROXY, HOLDER = 'haproxy', 'holder'
indexes = st.sampled_from([0, 1])


class SeamMachine(state_machine.StateMachine):
    """``proxies`` is the model: what serves each router. A router without a key has no proxy."""

    def __init__(self):
        super().__init__()
        self._exit = contextlib.ExitStack()
        directory = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix='metadata-wsgi-')))
        directory.chmod(0o755)
        self.node = Node(directory / 'neutron')
        self._exit.callback(self.node.close)
        self.proxies = {}
        self.unattended = set()
        """Its listener was to be closed while no keeper ran: a worker may still have it."""

    def teardown(self):
        self._exit.close()

    @initialize()
    def start(self):
        for _ in range(2):
            self.node.add_router()
        self.node.start()

    # -- what is there

    def conversion(self):
        return haproxy.Conversion(str(self.node.state_path), str(SHIM))

    def proxy(self, id_):
        return next((one for one in haproxy.running(str(self.node.state_path)) if one.id == id_), None)

    def in_keeper(self):
        with admin_client.connect(str(self.node.state_path)) as keeper:
            return {listener.id for listener in keeper.list()[0]}

    def detach(self, id_):
        with admin_client.connect(str(self.node.state_path)) as keeper:
            return keeper.unregister_all(id_)

    def unexpected(self):
        """What differs from the model, by router."""
        found = {}
        for id_ in self.node.ids:
            expected, proxy = self.proxies.get(id_), self.proxy(id_)
            present = proxy and (HAPROXY if proxy.is_haproxy else HOLDER)
            is_open = proxy_process.is_port_open(f'qrouter-{id_}', PORT)
            if present != expected or (id_ not in self.unattended and is_open != bool(expected)):
                found[id_] = present, is_open, expected
        if self.node.has_keeper() and self.node.has_proxy():
            held = {id_ for id_, one in self.proxies.items() if one == HOLDER}
            if self.in_keeper() - self.unattended != held - self.unattended:
                found['keeper'] = self.in_keeper(), held
        return found

    def settle(self):
        log = self.node.state_path / 'log'
        eventually(lambda: not self.unexpected(), lambda: f'{self.unexpected()}\n{log.read_text()[-3000:]}')
        for id_, served_by in self.proxies.items():
            if (served_by == HAPROXY and id_ not in self.unattended) or self.node.has_proxy():
                assert self.node.get(id_) == id_

    # -- the agent

    @rule(index=indexes, program=st.sampled_from([SHIM, 'haproxy']))
    def agent_starts_its_proxy(self, index, program):
        """It starts none while the process in its pid file runs."""
        id_ = self.node.ids[index]
        if id_ in self.proxies:
            return
        is_held = program == SHIM and self.node.has_keeper() and self.node.has_proxy()
        if not is_held and id_ in self.unattended:
            # A worker may serve the port: haproxy either shares it, or does not start.
            return
        self.node.start_proxy(id_, program)
        self.proxies[id_] = HOLDER if is_held else HAPROXY
        self.unattended.discard(id_)
        self.settle()

    @precondition(lambda self: self.proxies)
    @rule(data=st.data())
    def agent_stops_its_proxy(self, data):
        id_ = data.draw(st.sampled_from(sorted(self.proxies)))
        pid = self.node.pid(id_)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not is_alive(pid), 'the process ends')
        if self.proxies.pop(id_) == HOLDER and not self.node.has_keeper():
            self.unattended.add(id_)
        self.settle()

    @precondition(lambda self: HOLDER in self.proxies.values() and self.node.has_keeper())
    @rule(data=st.data())
    def holder_is_killed_and_the_agent_starts_it_again(self, data):
        """The keeper has the sockets meanwhile."""
        id_ = data.draw(st.sampled_from(sorted(id_ for id_, one in self.proxies.items() if one == HOLDER)))
        pid = self.node.pid(id_)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not is_alive(pid), 'the holder ends')
        self.node.start_proxy(id_, SHIM)
        if not self.node.has_proxy():
            # No worker is connected, so the keeper has closed its socket and the real haproxy was started.
            self.proxies[id_] = HAPROXY
        self.settle()

    # -- the operator

    @precondition(lambda self: self.proxies)
    @rule(data=st.data())
    def adopt(self, data):
        id_ = data.draw(st.sampled_from(sorted(self.proxies)))
        if self.proxies[id_] == HAPROXY and not (self.node.has_keeper() and self.node.has_proxy()):
            with pytest.raises(NetnsError):
                self.conversion().adopt(self.proxy(id_))
        else:
            assert self.conversion().adopt(self.proxy(id_)) == (self.proxies[id_] == HAPROXY)
            self.proxies[id_] = HOLDER
            self.unattended.discard(id_)
        self.settle()

    @precondition(lambda self: self.proxies)
    @rule(data=st.data())
    def give_back(self, data):
        """A node whose keeper does not run gets its haproxy back, too."""
        id_ = data.draw(st.sampled_from(sorted(self.proxies)))
        if self.node.has_keeper():
            changed = self.conversion().give_back(self.proxy(id_), self.detach)
            assert changed or self.proxies[id_] == HAPROXY
            self.unattended.discard(id_)
        elif self.proxies[id_] == HOLDER:
            with pytest.raises(NetnsError):
                self.conversion().give_back(self.proxy(id_), self.detach)
            self.unattended.add(id_)
        else:
            assert not self.conversion().give_back(self.proxy(id_), self.detach)
        self.proxies[id_] = HAPROXY
        self.settle()

    # -- processes

    @precondition(lambda self: self.node.has_keeper())
    @rule()
    def keeper_is_killed(self):
        self.node.kill_keeper()
        self.settle()

    @precondition(lambda self: self.node.has_proxy())
    @rule()
    def shared_proxy_is_killed(self):
        self.node.kill_proxy()
        self.settle()

    @precondition(lambda self: not (self.node.has_keeper() and self.node.has_proxy()))
    @rule()
    def what_was_killed_starts(self):
        self.node.start_missing()
        self.settle()


def test_router_is_served_in_any_order_of_adopt_give_back_and_kills():
    state_machine.run(SeamMachine, runs=2, steps=12, nightly_runs=30, shrink=False)
