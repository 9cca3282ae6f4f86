# SPDX-License-Identifier: Apache-2.0
"""The rules in a real router, with both kinds of iptables: which packets reach the port, and which leave the router."""

import socket
import subprocess

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, ruleset_template
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.rules import rules_for
from metadata_wsgi.netns.ruleset_template import RulesetTemplate
from metadata_wsgi.netns.runner import SubprocessRunner

from .router_topology import METADATA, get, http_server, saved_rules

pytestmark = pytest.mark.netns

WANTED = rules_for()


@pytest.fixture
def iptables(program):
    return Iptables(SubprocessRunner(), binary=program)


def in_router(topology, *argv):
    subprocess.run(['ip', 'netns', 'exec', topology.router, *argv], check=True)


def test_instance_reaches_the_proxy_by_the_metadata_address_only(topology, iptables):
    iptables.apply(topology.router, WANTED)
    with http_server(topology.router, 'proxy', 9697):
        assert get(topology.guest, METADATA) == 'proxy'
        assert get(topology.guest, '10.1.1.1', 9697, timeout_s=0.5) == ''
        assert get(topology.guest, '198.51.100.1', 9697, timeout_s=0.5) == ''


def test_external_host_cannot_reach_the_proxy(topology, iptables):
    """Not by the router's, and not by the metadata address routed to it."""
    subprocess.run(['ip', '-n', topology.outside, 'address', 'del', f'{METADATA}/32', 'dev', 'lo'], check=True)
    subprocess.run(['ip', '-n', topology.outside, 'route', 'add', METADATA, 'via', '198.51.100.1'], check=True)
    with http_server(topology.router, 'proxy', 9697):
        assert get(topology.outside, '198.51.100.1', 9697) == 'proxy'
        iptables.apply(topology.router, WANTED)
        assert get(topology.outside, '198.51.100.1', 9697, timeout_s=0.5) == ''
        assert get(topology.outside, '10.1.1.1', 9697, timeout_s=0.5) == ''
        assert get(topology.outside, METADATA, timeout_s=0.5) == ''


def test_rules_over_ipv6(topology, iptables):
    for name, link, addresses in (
        (topology.router, 'qr-in', ('fe80::a9fe:a9fe/64', 'fd00:1::1/64')),
        (topology.guest, 'eth0', ('fe80::2/64', 'fd00:1::2/64')),
    ):
        for address in addresses:
            subprocess.run(['ip', '-n', name, 'address', 'add', address, 'dev', link, 'nodad'], check=True)
    with http_server(topology.router, 'proxy', 9697, family=socket.AF_INET6):
        assert get(topology.guest, 'fd00:1::1', 9697) == 'proxy'
        iptables.apply(topology.router, WANTED)
        assert get(topology.guest, 'fe80::a9fe:a9fe%eth0') == 'proxy'
        assert get(topology.guest, 'fd00:1::1', 9697, timeout_s=0.5) == ''
        assert get(topology.guest, 'fe80::a9fe:a9fe%eth0', 9697, timeout_s=0.5) == ''


def test_operator_in_the_namespace_reaches_the_proxy(topology, iptables):
    iptables.apply(topology.router, WANTED)
    with http_server(topology.router, 'proxy', 9697):
        assert get(topology.router, '127.0.0.1', 9697) == 'proxy'


def test_loopback_address_is_closed_even_with_route_localnet(topology, iptables):
    """With route_localnet a guest can send to the router's 127.0.0.1, which Grizzly's rule accepts."""
    for name in (topology.router, topology.guest):
        sysctl = ['ip', 'netns', 'exec', name, 'sysctl', '-qw', 'net.ipv4.conf.all.route_localnet=1']
        subprocess.run(sysctl, check=True)
    subprocess.run(['ip', '-n', topology.guest, 'route', 'del', 'local', '127.0.0.0/8', 'table', 'local'], check=False)
    for words in (
        ['address', 'flush', 'dev', 'lo'],
        ['route', 'add', '127.0.0.1', 'via', '10.1.1.1', 'src', '10.1.1.2'],
    ):
        subprocess.run(['ip', '-n', topology.guest, *words], check=True)
    with http_server(topology.router, 'proxy', 9697):
        iptables.apply(topology.router, ())
        assert get(topology.guest, '127.0.0.1', 9697, source='10.1.1.2') == 'proxy'
        iptables.apply(topology.router, WANTED)
        assert get(topology.guest, '127.0.0.1', 9697, timeout_s=0.5, source='10.1.1.2') == ''


def test_packets_to_the_metadata_address_never_leave_the_router(topology, iptables, program):
    """Not without the proxy, not without the redirect, not to another port; without our rules they do."""
    with http_server(topology.outside, 'impostor', 80), http_server(topology.outside, 'impostor', 8080):
        assert get(topology.guest, METADATA) == 'impostor'
        iptables.apply(topology.router, WANTED)
        assert get(topology.guest, METADATA, timeout_s=0.5) == ''
        assert get(topology.guest, METADATA, 8080, timeout_s=0.5) == ''
        in_router(topology, program, '-t', 'nat', '-F')
        assert get(topology.guest, METADATA, timeout_s=0.5) == ''
        in_router(topology, program, '-t', 'mangle', '-F')
        assert get(topology.guest, METADATA, timeout_s=0.5) == ''
        assert get(topology.guest, '198.51.100.2') == 'impostor'


def test_flushed_agent_chains_leave_the_router_closed(topology, iptables, program):
    """An L3 agent rewrites its own chains and drops our rules there."""
    iptables.apply(topology.router, WANTED)
    in_router(topology, program, '-F', 'quantum-l3-agent-INPUT')
    in_router(topology, program, '-t', 'nat', '-F', 'quantum-l3-agent-PREROUTING')
    with http_server(topology.router, 'proxy', 9697), http_server(topology.outside, 'impostor', 80):
        assert get(topology.guest, METADATA, timeout_s=0.5) == ''
        assert get(topology.guest, '10.1.1.1', 9697, timeout_s=0.5) == ''


@pytest.fixture
def request_in_progress(topology, iptables):
    """(socket of the instance, socket of the proxy) of a connection through the rules."""
    iptables.apply(topology.router, WANTED)
    listener = namespaces.run_in(topology.router, lambda: socket.create_server(('', 9697)))
    with listener, namespaces.run_in(topology.guest, lambda: socket.create_connection((METADATA, 80))) as instance:
        proxy, _ = listener.accept()
        with proxy:
            proxy.settimeout(60)
            yield instance, proxy


# The kernel tracks connections only while a rule of the namespace needs it, and the redirect may be the only such rule.
# Without tracking, a response keeps the router's address as its source, and the instance resets the connection.


def test_response_arrives_after_a_flush_if_another_rule_needs_connection_tracking(
    topology, request_in_progress, program
):
    instance, proxy = request_in_progress
    in_router(
        topology, program, '-t', 'mangle', '-A', 'FORWARD', '-m', 'conntrack', '--ctstate', 'INVALID', '-j', 'DROP'
    )
    for table in ('nat', 'filter'):
        in_router(topology, program, '-t', table, '-F')
    proxy.sendall(b'response')
    instance.settimeout(60)
    assert instance.recv(8) == b'response'


def test_response_arrives_when_a_flushed_redirect_is_there_again(topology, iptables, request_in_progress, program):
    """The rules in the table filter drop the instance's reset, so the kernel sends the response again."""
    instance, proxy = request_in_progress
    in_router(topology, program, '-t', 'nat', '-F')
    proxy.sendall(b'response')
    instance.settimeout(0.3)
    with pytest.raises(TimeoutError):
        instance.recv(8)
    iptables.apply(topology.router, WANTED)
    instance.settimeout(60)
    assert instance.recv(8) == b'response'


def test_response_after_a_flush_of_all_rules_is_reset(topology, request_in_progress, program):
    _, proxy = request_in_progress
    for table in ('nat', 'filter'):
        in_router(topology, program, '-t', table, '-F')
    proxy.sendall(b'response')
    with pytest.raises(ConnectionResetError):
        proxy.recv(1)


def test_second_apply_changes_nothing(topology, iptables):
    assert iptables.apply(topology.router, WANTED) is True
    assert iptables.apply(topology.router, WANTED) is False
    assert set(iptables.ours(topology.router)) == set(WANTED)


def test_second_apply_with_a_mark_of_all_bits_changes_nothing(topology, iptables):
    wanted = rules_for(mark='0x10', interfaces='qr-in')
    iptables.apply(topology.router, wanted)
    assert iptables.apply(topology.router, wanted) is False


def test_removal_restores_the_former_rules(topology, iptables, program):
    six = program.replace('iptables', 'ip6tables')
    for words in (
        ['-N', 'quantum-l3-agent-INPUT'],
        ['-A', 'INPUT', '-j', 'quantum-l3-agent-INPUT'],
        ['-A', 'quantum-l3-agent-INPUT', '-s', '192.0.2.0/24', '-m', 'comment', '--comment', 'say "no"', '-j', 'DROP'],
    ):
        in_router(topology, program, *words)
    before = saved_rules(topology.router, program), saved_rules(topology.router, six)
    assert len(before[0]) == 3
    iptables.apply(topology.router, rules_for(port=9000))
    iptables.apply(topology.router, WANTED)
    assert '9000' not in str(saved_rules(topology.router, program))
    assert iptables.apply(topology.router, ()) is True
    assert (saved_rules(topology.router, program), saved_rules(topology.router, six)) == before


def test_kind_of_iptables_in_use_is_detected(topology, program):
    in_router(topology, program, '-A', 'FORWARD', '-s', '192.0.2.0/24', '-j', 'DROP')
    Iptables(SubprocessRunner()).apply(topology.router, WANTED, families=[4])
    assert 'metadata_wsgi' in str(saved_rules(topology.router, program))
    assert len(Iptables(SubprocessRunner()).ours(topology.router, families=[4])) == len(rules_for(families=[4]))


def test_error_message_of_iptables_is_reported(topology, iptables, program):
    with pytest.raises(NetnsError, match=f'{program}-restore.*exit code'):
        iptables.apply(topology.router, rules_for(interfaces='much-too-long-a-name'))


class RecordingRunner(SubprocessRunner):
    """Runs programs, and records those that run in a named namespace."""

    def __init__(self):
        super().__init__()
        self.programs = []

    def __call__(self, argv, *, namespace=None, **more):
        if namespace:
            self.programs.append(argv[0])
        return super().__call__(argv, namespace=namespace, **more)


@pytest.fixture
def recording():
    return RecordingRunner()


@pytest.fixture
def with_template(recording):
    """As attach creates it for many routers."""
    return Iptables(recording, binary='iptables-nft', bulk_rules=WANTED)


def both(topology):
    return [saved_rules(topology.router, program) for program in ('iptables-nft', 'ip6tables-nft')]


def test_copied_rules_are_those_that_iptables_adds(topology, with_template, recording):
    Iptables(SubprocessRunner(), binary='iptables-nft').apply(topology.router, WANTED)
    added = both(topology)
    Iptables(SubprocessRunner(), binary='iptables-nft').apply(topology.router, ())
    namespaces.run_in(topology.router, lambda: ruleset_template.delete_tables(*ruleset_template.read_ruleset()))
    assert with_template.apply(topology.router, WANTED) is True
    assert recording.programs == []
    assert both(topology) == added
    assert len(added[0]) > 8
    with http_server(topology.router, 'proxy', 9697), http_server(topology.outside, 'impostor', 80):
        assert get(topology.guest, METADATA) == 'proxy'
        assert get(topology.guest, '10.1.1.1', 9697, timeout_s=0.5) == ''


def test_copied_rules_with_packet_counts_are_recognised_and_removed(topology, with_template, recording):
    with_template.apply(topology.router, WANTED)
    with http_server(topology.router, 'proxy', 9697):
        assert get(topology.guest, METADATA) == 'proxy'
    assert with_template.apply(topology.router, WANTED) is False
    assert set(with_template.ours(topology.router)) == set(WANTED)
    assert with_template.apply(topology.router, ()) is True
    assert with_template.apply(topology.router, ()) is False
    assert recording.programs == []
    assert both(topology) == [[], []]
    assert with_template.ours(topology.router) == []


def test_rules_that_iptables_added_are_recognised(topology, with_template, recording):
    Iptables(SubprocessRunner(), binary='iptables-nft').apply(topology.router, WANTED)
    assert with_template.apply(topology.router, WANTED) is False
    assert recording.programs == []


AN_AGENTS = (
    ['-N', 'quantum-l3-agent-INPUT'],
    ['-A', 'INPUT', '-j', 'quantum-l3-agent-INPUT'],
    ['-A', 'quantum-l3-agent-INPUT', '-s', '192.0.2.0/24', '-j', 'DROP'],
    ['-A', 'FORWARD', '-s', '192.0.2.0/24', '-j', 'DROP'],
    ['-t', 'nat', '-A', 'POSTROUTING', '-s', '10.1.1.0/24', '-j', 'MASQUERADE'],
)
AN_EMPTY_CHAIN = (
    ['-t', 'nat', '-N', 'quantum-l3-agent-PREROUTING'],
    ['-t', 'nat', '-A', 'PREROUTING', '-j', 'quantum-l3-agent-PREROUTING'],
)


@pytest.mark.parametrize('foreign', [AN_AGENTS, (*AN_AGENTS, *AN_EMPTY_CHAIN), AN_EMPTY_CHAIN])
def test_copied_rules_among_those_of_an_agent_are_where_iptables_puts_them(topology, with_template, recording, foreign):
    for words in foreign:
        in_router(topology, 'iptables-nft', *words)
    before = both(topology)
    iptables = Iptables(SubprocessRunner(), binary='iptables-nft')
    iptables.apply(topology.router, WANTED)
    added = both(topology)
    iptables.apply(topology.router, ())
    assert both(topology) == before
    assert with_template.ours(topology.router) == []
    assert with_template.apply(topology.router, WANTED) is True
    assert both(topology) == added
    assert with_template.apply(topology.router, WANTED) is False
    assert set(with_template.ours(topology.router)) == set(WANTED)
    assert with_template.apply(topology.router, ()) is True
    assert both(topology) == before
    assert with_template.apply(topology.router, ()) is False
    assert recording.programs == []


def test_chain_that_another_program_began_to_use_stays_when_the_copied_rules_are_removed(
    topology, with_template, recording
):
    with_template.apply(topology.router, WANTED)
    foreign = (
        ['-A', 'quantum-l3-agent-INPUT', '-s', '192.0.2.0/24', '-j', 'DROP'],
        ['-t', 'nat', '-A', 'OUTPUT', '-j', 'quantum-l3-agent-PREROUTING'],
    )
    for words in foreign:
        in_router(topology, 'iptables-nft', *words)
    assert with_template.apply(topology.router, WANTED) is False
    assert with_template.apply(topology.router, ()) is True
    assert recording.programs == []
    assert sorted(both(topology)[0]) == [
        '*filter -A quantum-l3-agent-INPUT -s 192.0.2.0/24 -j DROP',
        '*filter :quantum-l3-agent-INPUT -',
        '*nat -A OUTPUT -j quantum-l3-agent-PREROUTING',
        '*nat :quantum-l3-agent-PREROUTING -',
    ]
    assert both(topology)[1] == []


def test_copied_rules_with_packet_counts_are_removed_from_among_others(topology, with_template, recording):
    in_router(topology, 'iptables-nft', '-A', 'INPUT', '-s', '192.0.2.0/24', '-j', 'DROP')
    before = both(topology)
    with_template.apply(topology.router, WANTED)
    with http_server(topology.router, 'proxy', 9697):
        assert get(topology.guest, METADATA) == 'proxy'
    assert with_template.apply(topology.router, ()) is True
    assert recording.programs == []
    assert both(topology) == before


@pytest.mark.parametrize(
    ('where', 'words'),
    [
        ('iptables-legacy', ['-A', 'FORWARD', '-s', '192.0.2.0/24', '-j', 'DROP']),
        ('iptables-nft', ['-P', 'INPUT', 'DROP']),
    ],
)
def test_legacy_rules_or_a_policy_are_left_to_iptables(topology, with_template, recording, where, words):
    in_router(topology, where, *words)
    before = saved_rules(topology.router, where)
    assert with_template.apply(topology.router, WANTED) is True
    assert 'iptables-nft-restore' in recording.programs
    assert set(with_template.ours(topology.router)) == set(WANTED)
    assert with_template.apply(topology.router, ()) is True
    assert saved_rules(topology.router, where) == before
    everything = subprocess.run(
        ['ip', 'netns', 'exec', topology.router, f'{where}-save'], capture_output=True, check=True
    )
    assert (b':INPUT DROP' in everything.stdout) is ('-P' in words)


def test_missing_or_surplus_rules_are_repaired_by_iptables(topology, with_template, recording):
    for words in (['-t', 'nat', '-F'], ['-I', 'INPUT', '-j', 'ACCEPT']):
        with_template.apply(topology.router, WANTED)
        recording.programs.clear()
        in_router(topology, 'iptables-nft', *words)
        assert with_template.apply(topology.router, WANTED) is True
        assert 'iptables-nft-restore' in recording.programs
    assert with_template.apply(topology.router, rules_for(port=9000)) is True
    assert 'to-ports 9000' in str(saved_rules(topology.router, 'iptables-nft'))


def test_write_after_a_concurrent_change_is_refused(topology, with_template):
    def too_late():
        there, generation = ruleset_template.read_ruleset()
        in_router(topology, 'iptables-nft', '-A', 'FORWARD', '-s', '192.0.2.0/24', '-j', 'DROP')
        for act in (ruleset_template.add_ruleset, ruleset_template.delete_tables):
            with pytest.raises(OSError, match='ERESTART'):
                act(template, generation)
        return there

    with_template.apply(topology.router, WANTED)
    template = namespaces.run_in(topology.router, ruleset_template.read_ruleset)[0]
    assert namespaces.run_in(topology.router, too_late) == template
    assert '-s 192.0.2.0/24' in str(saved_rules(topology.router, 'iptables-nft'))


def test_rules_that_changed_since_the_last_read_are_read_again(topology, with_template):
    def lose_rules():
        assert set(with_template.ours(topology.router)) == set(WANTED)
        in_router(topology, 'iptables-nft', '-t', 'nat', '-F')
        return with_template.apply(topology.router, WANTED)

    with_template.apply(topology.router, WANTED)
    assert namespaces.run_in(topology.router, lose_rules) is True
    assert 'to-ports 9697' in str(saved_rules(topology.router, 'iptables-nft'))


def test_rules_of_iptables_legacy_are_not_copied(topology, recording):
    legacy = Iptables(recording, binary='iptables-legacy', bulk_rules=WANTED)
    assert legacy.apply(topology.router, WANTED) is True
    assert 'iptables-legacy-restore' in recording.programs
    assert legacy.apply(topology.router, WANTED) is False
    assert both(topology) == [[], []]


@pytest.mark.parametrize('reads_back', [False, True])
def test_template_that_does_not_read_back_is_not_used(topology, reads_back):
    def add_rules():
        apply = SubprocessRunner()
        apply(['iptables-nft', '-A', 'INPUT', '-j', 'DROP'])

    template = RulesetTemplate(WANTED, add_rules=add_rules, are_rules_there=lambda: reads_back)
    assert template.apply(topology.router, WANTED) is (True if reads_back else None)
    assert bool(both(topology)[0]) is reads_back


def test_template_refused_by_iptables_falls_back_and_reports_the_error(topology):
    refused = rules_for(interfaces='much-too-long-a-name')
    with pytest.raises(NetnsError, match=r'iptables-nft-restore.*exit code'):
        Iptables(SubprocessRunner(), binary='iptables-nft', bulk_rules=refused).apply(topology.router, refused)
