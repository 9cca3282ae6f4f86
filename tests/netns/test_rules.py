# SPDX-License-Identifier: Apache-2.0
"""The rules in a real router, with both kinds of iptables: who reaches the port, and what gets out."""

import socket
import subprocess

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, nftables
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.rules import rules_for
from metadata_wsgi.netns.ruleset_template import Pattern
from metadata_wsgi.netns.runner import SubprocessRunner

from .router_topology import METADATA, get, saved, serving

pytestmark = pytest.mark.netns

WANTED = rules_for()


@pytest.fixture
def iptables(program):
    return Iptables(SubprocessRunner(), binary=program)


def in_router(world, *argv):
    subprocess.run(['ip', 'netns', 'exec', world.router, *argv], check=True)


def test_a_guest_reaches_the_proxy_by_the_metadata_address_only(world, iptables):
    iptables.apply(world.router, WANTED)
    with serving(world.router, 'proxy', 9697):
        assert get(world.guest, METADATA) == 'proxy'
        assert get(world.guest, '10.1.1.1', 9697, timeout_s=0.5) == ''
        assert get(world.guest, '198.51.100.1', 9697, timeout_s=0.5) == ''


def test_the_outside_reaches_the_proxy_by_no_address(world, iptables):
    """Not by the router's, and not by the metadata address routed to it."""
    subprocess.run(['ip', '-n', world.outside, 'address', 'del', f'{METADATA}/32', 'dev', 'lo'], check=True)
    subprocess.run(['ip', '-n', world.outside, 'route', 'add', METADATA, 'via', '198.51.100.1'], check=True)
    with serving(world.router, 'proxy', 9697):
        assert get(world.outside, '198.51.100.1', 9697) == 'proxy'
        iptables.apply(world.router, WANTED)
        assert get(world.outside, '198.51.100.1', 9697, timeout_s=0.5) == ''
        assert get(world.outside, '10.1.1.1', 9697, timeout_s=0.5) == ''
        assert get(world.outside, METADATA, timeout_s=0.5) == ''


def test_the_same_over_ipv6(world, iptables):
    for name, link, addresses in (
        (world.router, 'qr-in', ('fe80::a9fe:a9fe/64', 'fd00:1::1/64')),
        (world.guest, 'eth0', ('fe80::2/64', 'fd00:1::2/64')),
    ):
        for address in addresses:
            subprocess.run(['ip', '-n', name, 'address', 'add', address, 'dev', link, 'nodad'], check=True)
    with serving(world.router, 'proxy', 9697, family=socket.AF_INET6):
        assert get(world.guest, 'fd00:1::1', 9697) == 'proxy'
        iptables.apply(world.router, WANTED)
        assert get(world.guest, 'fe80::a9fe:a9fe%eth0') == 'proxy'
        assert get(world.guest, 'fd00:1::1', 9697, timeout_s=0.5) == ''
        assert get(world.guest, 'fe80::a9fe:a9fe%eth0', 9697, timeout_s=0.5) == ''


def test_an_operator_in_the_namespace_reaches_the_proxy(world, iptables):
    iptables.apply(world.router, WANTED)
    with serving(world.router, 'proxy', 9697):
        assert get(world.router, '127.0.0.1', 9697) == 'proxy'


def test_not_even_by_the_loopback_address_where_the_kernel_would_route_it(world, iptables):
    """With route_localnet a guest can send to the router's 127.0.0.1, which Grizzly's rule accepts."""
    for name in (world.router, world.guest):
        sysctl = ['ip', 'netns', 'exec', name, 'sysctl', '-qw', 'net.ipv4.conf.all.route_localnet=1']
        subprocess.run(sysctl, check=True)
    subprocess.run(['ip', '-n', world.guest, 'route', 'del', 'local', '127.0.0.0/8', 'table', 'local'], check=False)
    for words in (
        ['address', 'flush', 'dev', 'lo'],
        ['route', 'add', '127.0.0.1', 'via', '10.1.1.1', 'src', '10.1.1.2'],
    ):
        subprocess.run(['ip', '-n', world.guest, *words], check=True)
    with serving(world.router, 'proxy', 9697):
        iptables.apply(world.router, ())
        assert get(world.guest, '127.0.0.1', 9697, source='10.1.1.2') == 'proxy'
        iptables.apply(world.router, WANTED)
        assert get(world.guest, '127.0.0.1', 9697, timeout_s=0.5, source='10.1.1.2') == ''


def test_nothing_for_the_metadata_address_leaves_the_router(world, iptables, program):
    """Without the proxy, without the redirect, for another port; and without our rules it would."""
    with serving(world.outside, 'impostor', 80), serving(world.outside, 'impostor', 8080):
        assert get(world.guest, METADATA) == 'impostor'
        iptables.apply(world.router, WANTED)
        assert get(world.guest, METADATA, timeout_s=0.5) == ''
        assert get(world.guest, METADATA, 8080, timeout_s=0.5) == ''
        in_router(world, program, '-t', 'nat', '-F')
        assert get(world.guest, METADATA, timeout_s=0.5) == ''
        in_router(world, program, '-t', 'mangle', '-F')
        assert get(world.guest, METADATA, timeout_s=0.5) == ''
        assert get(world.guest, '198.51.100.2') == 'impostor'


def test_the_agents_chains_may_be_flushed_and_the_router_stays_closed(world, iptables, program):
    """An L3 agent writes its own chains anew and drops our rules there."""
    iptables.apply(world.router, WANTED)
    in_router(world, program, '-F', 'quantum-l3-agent-INPUT')
    in_router(world, program, '-t', 'nat', '-F', 'quantum-l3-agent-PREROUTING')
    with serving(world.router, 'proxy', 9697), serving(world.outside, 'impostor', 80):
        assert get(world.guest, METADATA, timeout_s=0.5) == ''
        assert get(world.guest, '10.1.1.1', 9697, timeout_s=0.5) == ''


def test_the_rules_are_kept_as_written_so_that_a_second_time_does_nothing(world, iptables):
    assert iptables.apply(world.router, WANTED) is True
    assert iptables.apply(world.router, WANTED) is False
    assert set(iptables.ours(world.router)) == set(WANTED)


def test_a_mark_of_all_bits_is_kept_as_written_too(world, iptables):
    wanted = rules_for(mark='0x10', interfaces='qr-in')
    iptables.apply(world.router, wanted)
    assert iptables.apply(world.router, wanted) is False


def test_removal_leaves_everything_as_it_was(world, iptables, program):
    six = program.replace('iptables', 'ip6tables')
    for words in (
        ['-N', 'quantum-l3-agent-INPUT'],
        ['-A', 'INPUT', '-j', 'quantum-l3-agent-INPUT'],
        ['-A', 'quantum-l3-agent-INPUT', '-s', '192.0.2.0/24', '-m', 'comment', '--comment', 'say "no"', '-j', 'DROP'],
    ):
        in_router(world, program, *words)
    before = saved(world.router, program), saved(world.router, six)
    assert len(before[0]) == 3
    iptables.apply(world.router, rules_for(port=9000))
    iptables.apply(world.router, WANTED)
    assert '9000' not in str(saved(world.router, program))
    assert iptables.apply(world.router, ()) is True
    assert (saved(world.router, program), saved(world.router, six)) == before


def test_the_kind_in_use_is_found_out(world, program):
    in_router(world, program, '-A', 'FORWARD', '-s', '192.0.2.0/24', '-j', 'DROP')
    Iptables(SubprocessRunner()).apply(world.router, WANTED, families=[4])
    assert 'metadata_wsgi' in str(saved(world.router, program))
    assert len(Iptables(SubprocessRunner()).ours(world.router, families=[4])) == len(rules_for(families=[4]))


def test_a_refusal_is_in_iptables_own_words(world, iptables, program):
    with pytest.raises(NetnsError, match=f'{program}-restore.*exit code'):
        iptables.apply(world.router, rules_for(interfaces='much-too-long-a-name'))


class Counting(SubprocessRunner):
    """Runs what it is told, and remembers what was run in a namespace that has a name."""

    def __init__(self):
        super().__init__()
        self.run = []

    def __call__(self, argv, *, namespace=None, **more):
        if namespace:
            self.run.append(argv[0])
        return super().__call__(argv, namespace=namespace, **more)


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def copying(counting):
    """As attach makes it for many routers."""
    return Iptables(counting, binary='iptables-nft', many=WANTED)


def both(world):
    return [saved(world.router, program) for program in ('iptables-nft', 'ip6tables-nft')]


def test_copied_rules_are_those_that_iptables_would_have_laid(world, copying, counting):
    Iptables(SubprocessRunner(), binary='iptables-nft').apply(world.router, WANTED)
    laid = both(world)
    Iptables(SubprocessRunner(), binary='iptables-nft').apply(world.router, ())
    namespaces.run_in(world.router, lambda: nftables.remove(*nftables.read()))
    assert copying.apply(world.router, WANTED) is True
    assert counting.run == []
    assert both(world) == laid
    assert len(laid[0]) > 8
    with serving(world.router, 'proxy', 9697), serving(world.outside, 'impostor', 80):
        assert get(world.guest, METADATA) == 'proxy'
        assert get(world.guest, '10.1.1.1', 9697, timeout_s=0.5) == ''


def test_what_was_copied_is_adopted_and_removed_after_packets_were_counted(world, copying, counting):
    copying.apply(world.router, WANTED)
    with serving(world.router, 'proxy', 9697):
        assert get(world.guest, METADATA) == 'proxy'
    assert copying.apply(world.router, WANTED) is False
    assert set(copying.ours(world.router)) == set(WANTED)
    assert copying.apply(world.router, ()) is True
    assert copying.apply(world.router, ()) is False
    assert counting.run == []
    assert both(world) == [[], []]
    assert copying.ours(world.router) == []


def test_what_iptables_laid_is_known_to_be_the_same(world, copying, counting):
    Iptables(SubprocessRunner(), binary='iptables-nft').apply(world.router, WANTED)
    assert copying.apply(world.router, WANTED) is False
    assert counting.run == []


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


@pytest.mark.parametrize('theirs', [AN_AGENTS, (*AN_AGENTS, *AN_EMPTY_CHAIN), AN_EMPTY_CHAIN])
def test_among_an_agents_rules_ours_are_put_where_iptables_puts_them_and_taken_out(world, copying, counting, theirs):
    for words in theirs:
        in_router(world, 'iptables-nft', *words)
    before = both(world)
    iptables = Iptables(SubprocessRunner(), binary='iptables-nft')
    iptables.apply(world.router, WANTED)
    laid = both(world)
    iptables.apply(world.router, ())
    assert both(world) == before
    assert copying.ours(world.router) == []
    assert copying.apply(world.router, WANTED) is True
    assert both(world) == laid
    assert copying.apply(world.router, WANTED) is False
    assert set(copying.ours(world.router)) == set(WANTED)
    assert copying.apply(world.router, ()) is True
    assert both(world) == before
    assert copying.apply(world.router, ()) is False
    assert counting.run == []


@pytest.mark.parametrize(
    ('where', 'words'),
    [
        ('iptables-legacy', ['-A', 'FORWARD', '-s', '192.0.2.0/24', '-j', 'DROP']),
        ('iptables-nft', ['-P', 'INPUT', 'DROP']),
    ],
)
def test_beside_legacy_rules_or_a_policy_it_is_left_to_iptables(world, copying, counting, where, words):
    in_router(world, where, *words)
    before = saved(world.router, where)
    assert copying.apply(world.router, WANTED) is True
    assert 'iptables-nft-restore' in counting.run
    assert set(copying.ours(world.router)) == set(WANTED)
    assert copying.apply(world.router, ()) is True
    assert saved(world.router, where) == before
    everything = subprocess.run(['ip', 'netns', 'exec', world.router, f'{where}-save'], capture_output=True, check=True)
    assert (b':INPUT DROP' in everything.stdout) is ('-P' in words)


def test_a_rule_that_is_missing_or_too_many_is_seen_and_mended_by_iptables(world, copying, counting):
    for words in (['-t', 'nat', '-F'], ['-I', 'INPUT', '-j', 'ACCEPT']):
        copying.apply(world.router, WANTED)
        counting.run.clear()
        in_router(world, 'iptables-nft', *words)
        assert copying.apply(world.router, WANTED) is True
        assert 'iptables-nft-restore' in counting.run
    assert copying.apply(world.router, rules_for(port=9000)) is True
    assert 'to-ports 9000' in str(saved(world.router, 'iptables-nft'))


def test_nothing_is_written_over_what_came_while_we_looked(world, copying):
    def too_late():
        there, generation = nftables.read()
        in_router(world, 'iptables-nft', '-A', 'FORWARD', '-s', '192.0.2.0/24', '-j', 'DROP')
        for act in (nftables.write, nftables.remove):
            with pytest.raises(OSError, match='ERESTART'):
                act(pattern, generation)
        return there

    copying.apply(world.router, WANTED)
    pattern = namespaces.run_in(world.router, nftables.read)[0]
    assert namespaces.run_in(world.router, too_late) == pattern
    assert '-s 192.0.2.0/24' in str(saved(world.router, 'iptables-nft'))


def test_of_iptables_legacy_nothing_is_copied(world, counting):
    legacy = Iptables(counting, binary='iptables-legacy', many=WANTED)
    assert legacy.apply(world.router, WANTED) is True
    assert 'iptables-legacy-restore' in counting.run
    assert legacy.apply(world.router, WANTED) is False
    assert both(world) == [[], []]


@pytest.mark.parametrize('is_laid', [False, True])
def test_a_copy_that_does_not_read_back_as_wanted_is_never_given_to_a_router(world, is_laid):
    def lay():
        apply = SubprocessRunner()
        apply(['iptables-nft', '-A', 'INPUT', '-j', 'DROP'])

    pattern = Pattern(WANTED, lay=lay, is_laid=lambda: is_laid)
    assert pattern.apply(world.router, WANTED) is (True if is_laid else None)
    assert bool(both(world)[0]) is is_laid


def test_where_iptables_refuses_the_pattern_too_it_is_asked_for_each_and_says_why(world):
    refused = rules_for(interfaces='much-too-long-a-name')
    with pytest.raises(NetnsError, match=r'iptables-nft-restore.*exit code'):
        Iptables(SubprocessRunner(), binary='iptables-nft', many=refused).apply(world.router, refused)
