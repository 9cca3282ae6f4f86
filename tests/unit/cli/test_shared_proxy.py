# SPDX-License-Identifier: Apache-2.0
"""The start of keeper and shared proxy by ``attach``, ``watch`` and an L3 agent. With programs: test_default_mode."""

import socket
import types

import pytest

from metadata_wsgi.cli import shared_proxy
from metadata_wsgi.cli.shared_proxy import START_TIMEOUT_S, SharedProxy
from tests.fakes import FakeClock


class Host:
    """A host whose keeper and shared proxy start when they are started here, or after a time when systemd does it."""

    def __init__(self, state_path, monkeypatch):
        self.state_path = state_path
        self.clock = FakeClock()
        self.has_keeper = self.has_worker = False
        self.systemd_starts_at_s = float('inf')
        self.started = []
        monkeypatch.setattr(shared_proxy, 'time', types.SimpleNamespace(monotonic=self.clock, sleep=self.clock.sleep))
        monkeypatch.setattr(SharedProxy, '_has_workers', lambda proxy: self.workers_are_connected())
        monkeypatch.setattr(SharedProxy, '_has_keeper', lambda proxy: self.has_keeper)
        monkeypatch.setattr(shared_proxy, '_start', self.start)

    def workers_are_connected(self):
        if self.clock() >= self.systemd_starts_at_s:
            self.has_keeper = self.has_worker = True
        return self.has_keeper and self.has_worker

    def start(self, argv):
        self.started.append('keeper' if 'keeper' in argv else 'shared proxy')
        self.has_keeper = True
        self.has_worker |= '--shared' in argv

    def leave_socket(self, name):
        """The socket file of a program that has ended."""
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(self.state_path / name))


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def test_fresh_host_starts_keeper_and_shared_proxy_without_a_wait(host):
    SharedProxy(str(host.state_path)).ensure_running()
    assert (host.started, host.clock.slept) == (['keeper', 'shared proxy'], [])


def test_host_with_a_keeper_that_never_had_a_shared_proxy_starts_it_without_a_wait(host):
    host.leave_socket('keeper')
    host.has_keeper = True
    SharedProxy(str(host.state_path)).ensure_running()
    assert (host.started, host.clock.slept) == (['shared proxy'], [])


@pytest.mark.parametrize('name', ['keeper', 'shared_proxy'])
def test_restart_of_a_unit_is_waited_for_and_no_second_keeper_or_shared_proxy_is_started(host, name):
    """The unit would then fail at each start, because another shared proxy is running."""
    host.leave_socket(name)
    host.has_keeper = name == 'shared_proxy'
    host.systemd_starts_at_s = host.clock() + 3.0
    SharedProxy(str(host.state_path)).ensure_running()
    assert host.started == []


def test_sockets_of_programs_that_do_not_come_back_do_not_prevent_the_start(host):
    host.leave_socket('keeper')
    host.leave_socket('shared_proxy')
    SharedProxy(str(host.state_path)).ensure_running()
    assert host.started == ['keeper', 'shared proxy']
    assert sum(host.clock.slept) == pytest.approx(START_TIMEOUT_S, abs=1.0)
