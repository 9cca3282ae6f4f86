# SPDX-License-Identifier: Apache-2.0
"""Errors before anything is attached, and the status. The rest: tests/netns."""

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.attachment_status import KEEPER_UNAVAILABLE, NO_LISTENER, check_rules, list_attachments
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.rules import rules_for
from metadata_wsgi.netns.target import NO_WORKER, AttachTarget, KeeperEntry

UUID = '6f1b4e0a-8f5e-4a57-9d0e-1f0c5a3f0d11'


def nothing_runs(argv, *, stdin='', namespace=None):
    raise AssertionError(f'{argv} was run')


def test_attach_without_namespace_names_it_and_runs_nothing(tmp_path):
    attacher = Attacher(nothing_runs, proxy=ProxyCommand(state_path=str(tmp_path)))
    with pytest.raises(NetnsError, match=f'there is no namespace qrouter-{UUID} on this host.*ip netns list'):
        attacher.attach(AttachTarget.of('router', UUID))


def test_detach_without_namespace_is_no_error(tmp_path):
    attacher = Attacher(nothing_runs, proxy=ProxyCommand(state_path=str(tmp_path)))
    assert attacher.detach(AttachTarget.of('router', UUID)) is False


@pytest.mark.parametrize('families', [(4,), (4, 6)])
def test_check_rules_reads_port_interfaces_and_mark_from_the_rules(families):
    rules = rules_for(port=9000, interfaces='br-+', mark='0x2/0xff', families=families)
    assert check_rules(rules, families) == (9000, 'yes')
    assert check_rules((), families) == (9697, 'no')
    for missing in rules:
        assert check_rules([rule for rule in rules if rule != missing], families)[1] == 'partly'


def test_status_of_a_router_without_ipv6_rules_is_one_problem_of_ipv6(tmp_path, monkeypatch):
    class Ipv4Only:
        def ours(self, namespace, *, families):
            return [rule for rule in rules_for(families=[4]) if rule.family in families]

    monkeypatch.setattr(namespaces, 'exists', lambda name: True)
    monkeypatch.setattr(namespaces, 'names', lambda: ['qrouter-1234'])
    monkeypatch.setattr(namespaces, 'stale_names', lambda min_age_s: [])
    (found,) = list_attachments(Ipv4Only(), state_path=str(tmp_path), families=(4, 6))
    assert found.problems == (
        'there are no IPv6 rules, so only IPv4 is served; "attach" prints the reason',
        NO_LISTENER,
    )


def test_status_reads_the_rules_of_the_family_that_can_be_read(tmp_path, monkeypatch):
    class BrokenIpv6:
        def ours(self, namespace, *, families):
            if 6 in families:
                raise NetnsError('ip6tables-save: No such file')
            return [*rules_for(families=[4])]

    monkeypatch.setattr(namespaces, 'exists', lambda name: True)
    monkeypatch.setattr(namespaces, 'names', lambda: ['qrouter-1234'])
    monkeypatch.setattr(namespaces, 'stale_names', lambda min_age_s: [])
    (found,) = list_attachments(BrokenIpv6(), state_path=str(tmp_path), families=(4, 6))
    assert 'the IPv6 rules cannot be read: ip6tables-save: No such file' in found.problems
    assert found.port == 9697


def test_check_rules_with_a_stale_rule_of_another_port_is_partly():
    stray = rules_for(port=9000, families=(4,))[-1]
    assert check_rules([*rules_for(families=(4,)), stray], (4,))[1] == 'partly'


class NoRules:
    """A RuleReader of a host without rules of ours. ``redirects`` are the ports of the redirects of an agent."""

    def __init__(self, *redirects):
        self.redirects = set(redirects)

    def ours(self, namespace, *, families):
        return []

    def redirect_ports(self, namespace):
        return self.redirects


def find(state_path, entries):
    """The status of UUID."""
    found = list_attachments(NoRules(), state_path=str(state_path), keeper_entries=entries)
    return next(one for one in found if one.uuid == UUID)


def test_status_lists_a_keeper_entry_without_namespace_and_worker(tmp_path):
    entry = KeeperEntry(AttachTarget.of('router', UUID), 'one_hop', 9697, ('',), workers=0)
    found = next(
        one for one in list_attachments(NoRules(), state_path=str(tmp_path), keeper_entries=[entry]) if one.uuid == UUID
    )
    assert (found.mode, found.pid, found.namespace) == ('one_hop', None, None)
    assert found.problems == (
        f'there is no namespace qrouter-{UUID} on this host',
        NO_WORKER['one_hop'],
    )


@pytest.mark.parametrize(
    ('entries', 'mode', 'problem'), [((), 'process', NO_LISTENER), (None, 'unknown', KEEPER_UNAVAILABLE)]
)
def test_status_without_process_has_unknown_mode_while_keeper_is_unavailable(tmp_path, entries, mode, problem):
    pid_file = tmp_path / 'external' / 'pids' / f'{UUID}.pid'
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text('0')
    found = next(
        one for one in list_attachments(NoRules(), state_path=str(tmp_path), keeper_entries=entries) if one.uuid == UUID
    )
    assert (found.mode, found.problems[1:]) == (mode, (problem,))


def test_status_reports_a_keeper_port_that_differs_from_the_redirect(tmp_path):
    entry = KeeperEntry(AttachTarget.of('router', UUID), 'shared', 9000, ('',), workers=1)
    found = next(
        one for one in list_attachments(NoRules(), state_path=str(tmp_path), keeper_entries=[entry]) if one.uuid == UUID
    )
    assert found.problems[1:] == ('the keeper listens on port 9000, requests are redirected to 9697; attach it again',)


@pytest.mark.parametrize(
    ('redirects', 'rules', 'problems'),
    [
        ([9697], 'yes', ()),
        ([80, 9697], 'yes', ()),
        ([9700], 'no', ('the rules are missing; attach it again',)),
        ([], 'no', ('the rules are missing; attach it again',)),
    ],
)
def test_status_of_a_router_that_an_agents_own_rules_redirect_has_no_problem(
    tmp_path, monkeypatch, redirects, rules, problems
):
    """An L3 agent adds its rules itself: they lack our comment."""
    monkeypatch.setattr(namespaces, 'exists', lambda name: name == f'qrouter-{UUID}')
    entry = KeeperEntry(AttachTarget.of('router', UUID), 'shared', 9697, ('',), workers=1)
    found = next(
        one
        for one in list_attachments(NoRules(*redirects), state_path=str(tmp_path), keeper_entries=[entry])
        if one.uuid == UUID
    )
    assert (found.port, found.rules, found.problems) == (9697, rules, problems)


def test_status_of_a_process_that_an_agents_own_rules_redirect_has_no_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(namespaces, 'exists', lambda name: name == f'qrouter-{UUID}')
    monkeypatch.setattr(namespaces, 'name_of', lambda pid: f'qrouter-{UUID}')
    monkeypatch.setattr(proxy_process, 'running_pid', lambda pid_file, uuid: 4711)
    monkeypatch.setattr(proxy_process, 'listens', lambda pid, port: port == 9700)
    pid_file = tmp_path / 'external' / 'pids' / f'{UUID}.pid'
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text('4711')
    found = next(one for one in list_attachments(NoRules(9697, 9700), state_path=str(tmp_path)) if one.uuid == UUID)
    assert (found.port, found.rules, found.problems) == (9700, 'yes', ())


def test_mode_shared_without_keeper_is_an_error(tmp_path):
    attacher = Attacher(nothing_runs, proxy=ProxyCommand(state_path=str(tmp_path)))
    with pytest.raises(NetnsError, match='mode shared needs the keeper'):
        attacher._mode_changer.serve(AttachTarget.of('router', UUID), 'shared', 9697, None)


class UnavailableKeeper:
    """A keeper that does not respond."""

    def attach(self, target, mode, port, hosts, taken=()):
        raise NetnsError('no keeper listens')

    def entry(self, target):
        raise NetnsError('no keeper listens')

    def close(self, target, mode, port, host):
        raise NetnsError('no keeper listens')

    def detach(self, target):
        raise NetnsError('no keeper listens')


def test_unavailable_keeper_fails_detach_but_not_the_start_of_a_process(tmp_path, caplog):
    attacher = Attacher(nothing_runs, proxy=ProxyCommand(state_path=str(tmp_path)), keeper=UnavailableKeeper())
    with pytest.raises(NetnsError, match='no keeper listens'):
        attacher.detach(AttachTarget.of('router', UUID))
    attacher._mode_changer._close_in_keeper(AttachTarget.of('router', UUID))
    assert f'router {UUID}: no keeper listens' in caplog.text
