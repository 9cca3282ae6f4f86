# SPDX-License-Identifier: Apache-2.0
"""The order of detach, and what an attach that fails leaves behind. With a real kernel: tests/netns."""

import contextlib

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.net.listening_process import ListeningProcess
from metadata_wsgi.netns import attach as attach_module
from metadata_wsgi.netns import proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.rules import rules_for
from metadata_wsgi.netns.target import AttachTarget
from tests.fakes import FakeClock

UUID = '6f1b4e0a-8f5e-4a57-9d0e-1f0c5a3f0d11'
ROUTER = AttachTarget.of('router', UUID)
OWN = ListeningProcess(4711, 'metadata-wsgi', is_own=True)
HAPROXY = ListeningProcess(4712, 'haproxy', is_own=False)
SYSTEMD = ListeningProcess(1, 'systemd', is_own=False)
"""With a copy of the keeper's socket, and the lowest pid of the processes that have it."""


class FakeNamespace:
    """One namespace with its rules, the keeper's socket in it, and the events in their order."""

    def __init__(self, monkeypatch, tmp_path):
        self.events = []
        self.rules = []
        self.ipv6_error = ''
        self.keeper_error = ''
        self.open_port = None
        self.closes_after = 0
        self.process = OWN
        self.clock = FakeClock()
        monkeypatch.setattr(attach_module.namespaces, 'exists', lambda name: True)
        monkeypatch.setattr(attach_module.namespaces, 'run_in', lambda name, fn: fn())
        monkeypatch.setattr(attach_module.listening_process, 'find', lambda port: self.process)
        monkeypatch.setattr(proxy_process, 'is_port_open', self.is_port_open)
        monkeypatch.setattr(attach_module.interface_state, 'names', lambda name: ['lo'])
        monkeypatch.setattr(attach_module.interface_state, 'open_table', lambda name: contextlib.nullcontext(self))
        self.attacher = Attacher(
            self.run, proxy=ProxyCommand(state_path=str(tmp_path)), iptables=self, keeper=self, families=(4, 6),
            clock=self.clock, sleep=self.clock.sleep,
        )  # fmt: skip

    def run(self, argv, *, stdin='', namespace=None, pass_fds=()):
        raise NetnsError('the program does not start')

    def is_port_open(self, namespace, port):
        if self.closes_after and self.clock.slept:
            self.closes_after -= 1
            if not self.closes_after:
                self.open_port = None
        return port == self.open_port

    # -- RuleWriter

    def apply(self, namespace, wanted, *, families):
        return self.replace(namespace, wanted, families=families) is not None

    def replace(self, namespace, wanted, *, families):
        if self.ipv6_error and 6 in families:
            raise NetnsError(self.ipv6_error)
        former, self.rules = tuple(self.rules), [rule for rule in wanted if rule.family in families]
        self.events.append(f'{len(self.rules)} rules')
        return former if former != tuple(self.rules) else None

    def ours(self, namespace, *, families):
        return [rule for rule in self.rules if rule.family in families]

    # -- KeeperListeners

    def attach(self, target, mode, port, hosts, taken=()):
        if self.keeper_error:
            raise NetnsError(self.keeper_error)
        self.events.append(f'listen {hosts}')
        return True

    def entry(self, target):
        return None

    def close(self, target, mode, port, host):
        raise AssertionError('not used here')

    def detach(self, target):
        if self.keeper_error:
            raise NetnsError(self.keeper_error)
        self.events.append('closed in the keeper')
        return True

    # -- InterfaceTable

    def interfaces(self):
        return []


@pytest.fixture
def namespace(monkeypatch, tmp_path):
    return FakeNamespace(monkeypatch, tmp_path)


def test_detach_closes_the_listener_before_it_removes_the_rules(namespace):
    namespace.rules = list(rules_for())
    assert namespace.attacher.detach(ROUTER) is True
    assert namespace.events == ['closed in the keeper', '0 rules']


def test_detach_waits_until_the_worker_has_closed_its_copy(namespace):
    namespace.rules, namespace.open_port, namespace.closes_after = list(rules_for()), 9697, 3
    assert namespace.attacher.detach(ROUTER) is True
    assert namespace.events[-1] == '0 rules'
    assert namespace.clock.slept


def test_detach_keeps_the_rules_where_the_listener_stays_open(namespace):
    namespace.rules, namespace.open_port = list(rules_for()), 9697
    with pytest.raises(NetnsError, match=r'port 9697 .* is still open in pid 4711 \(metadata-wsgi\); the rules'):
        namespace.attacher.detach(ROUTER)
    assert namespace.rules == list(rules_for())


def test_detach_does_not_wait_for_a_listener_of_another_program(namespace):
    namespace.rules, namespace.open_port, namespace.process = list(rules_for()), 9697, HAPROXY
    assert namespace.attacher.detach(ROUTER) is True
    assert namespace.rules == []


def test_detach_while_the_keeper_is_unavailable_keeps_the_rules_of_an_open_port(namespace):
    namespace.rules, namespace.open_port, namespace.keeper_error = list(rules_for()), 9697, 'no keeper listens'
    with pytest.raises(NetnsError, match=r'no keeper listens; port 9697 .* is still open'):
        namespace.attacher.detach(ROUTER)
    assert namespace.rules == list(rules_for())


@pytest.mark.parametrize('process', [SYSTEMD, None], ids=['systemd has a copy', 'no process is visible'])
def test_detach_while_the_keeper_is_unavailable_keeps_the_rules_if_systemd_has_the_socket(namespace, process):
    """A worker has the socket too: it serves it, so without the rules its port would be open."""
    namespace.rules, namespace.open_port, namespace.keeper_error = list(rules_for()), 9697, 'no keeper listens'
    namespace.process = process
    with pytest.raises(NetnsError, match=r'no keeper listens; port 9697 .* is still open.*start the keeper'):
        namespace.attacher.detach(ROUTER)
    assert namespace.rules == list(rules_for())


def test_detach_keeps_the_rules_where_the_socket_stays_open_in_systemd(namespace):
    namespace.rules, namespace.open_port, namespace.process = list(rules_for()), 9697, SYSTEMD
    with pytest.raises(NetnsError, match=r'port 9697 .* is still open'):
        namespace.attacher.detach(ROUTER)
    assert namespace.rules == list(rules_for())


def test_detach_while_the_keeper_is_unavailable_removes_the_rules_of_a_closed_port(namespace):
    namespace.rules, namespace.keeper_error = list(rules_for()), 'no keeper listens'
    with pytest.raises(NetnsError, match=r'^no keeper listens$'):
        namespace.attacher.detach(ROUTER)
    assert namespace.rules == []


def test_failed_attach_restores_the_former_rules(namespace):
    former = rules_for(port=9000)
    namespace.rules = list(former)
    namespace.keeper_error = 'no keeper listens'
    with pytest.raises(NetnsError, match='no keeper listens'):
        namespace.attacher.attach(ROUTER, mode='shared')
    assert namespace.rules == list(former)


def test_failed_attach_keeps_the_rules_of_a_port_that_is_still_served(namespace):
    """A worker serves on while the keeper is unavailable. Without the rules its port would be open."""
    namespace.keeper_error, namespace.open_port = 'no keeper listens', 9697
    with pytest.raises(NetnsError):
        namespace.attacher.attach(ROUTER, mode='shared')
    assert namespace.rules == list(rules_for())


def test_port_of_another_program_is_reported_before_any_rule_is_added(namespace):
    namespace.open_port, namespace.process = 9697, HAPROXY
    with pytest.raises(NetnsError, match=r'port 9697 in qrouter-.* is used by pid 4712 \(haproxy\): stop it, or use'):
        namespace.attacher.attach(ROUTER, mode='shared')
    assert namespace.events == []


def test_another_port_that_another_program_holds_is_reported_before_any_rule_changes(namespace):
    """Otherwise requests would be redirected to that program, and the present port would be open without rules."""
    namespace.rules, namespace.open_port, namespace.process = list(rules_for()), 9700, HAPROXY
    with pytest.raises(NetnsError, match=r'port 9700 in qrouter-.* is used by pid 4712 \(haproxy\)'):
        namespace.attacher.attach(ROUTER, mode='shared', port=9700)
    assert namespace.rules == list(rules_for())


def test_failed_attach_restores_the_rules_where_another_program_took_the_port_meanwhile(namespace):
    def attach(*args):
        namespace.open_port, namespace.process = 9700, HAPROXY
        raise NetnsError('the port is in use')

    namespace.rules, namespace.attach = list(rules_for()), attach
    with pytest.raises(NetnsError, match='in use'):
        namespace.attacher.attach(ROUTER, mode='shared', port=9700)
    assert namespace.rules == list(rules_for())


def test_process_on_another_port_is_refused_while_a_worker_may_serve_the_present_one(namespace):
    """Without the keeper the worker's socket cannot be closed; without its rules the port would be open."""
    namespace.rules, namespace.open_port, namespace.keeper_error = list(rules_for()), 9697, 'no keeper answers'
    with pytest.raises(NetnsError, match='no keeper answers'):
        namespace.attacher.attach(ROUTER, mode='process', port=9700)
    assert namespace.rules == list(rules_for())


def test_failed_start_of_a_process_leaves_no_rules_though_a_worker_closes_the_port_a_moment_later(namespace):
    namespace.open_port, namespace.closes_after = 9697, 3
    with pytest.raises(NetnsError, match='the program does not start'):
        namespace.attacher.attach(ROUTER, mode='process')
    assert namespace.rules == []


def test_without_ipv6_rules_the_proxy_listens_on_ipv4_only(namespace, caplog):
    namespace.ipv6_error = 'ip6tables-restore: No such file or directory'
    assert namespace.attacher.attach(ROUTER, mode='shared').listener is True
    assert namespace.events == ['8 rules', "listen ['0.0.0.0']"]
    assert f'router {UUID} is attached without IPv6: ip6tables-restore: No such file' in caplog.text
