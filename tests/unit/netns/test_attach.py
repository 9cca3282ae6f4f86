# SPDX-License-Identifier: Apache-2.0
"""What is told to the proxy, and what is said where there is nothing to attach to. The rest: tests/netns."""

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns.attach import Attachments, Proxy
from metadata_wsgi.netns.attachment_status import KEEPER_AWAY, NOBODY_LISTENS, attached, judge
from metadata_wsgi.netns.rules import rules_for
from metadata_wsgi.netns.target import NOBODY_SERVES, Kept, Place

UUID = '6f1b4e0a-8f5e-4a57-9d0e-1f0c5a3f0d11'


def nothing_runs(argv, *, stdin='', namespace=None):
    raise AssertionError(f'{argv} was run')


def test_the_command_line_of_a_routers_proxy_is_the_l3_agents():
    proxy = Proxy(state_path='/s', socket='/s/sock', log_dir='/l')
    assert proxy.argv(Place.of('router', UUID), 9697) == [
        'quantum-ns-metadata-proxy',
        f'--pid_file=/s/external/pids/{UUID}.pid',
        f'--router_id={UUID}',
        '--state_path=/s',
        '--metadata_port=9697',
        '--metadata_proxy_socket=/s/sock',
        f'--log-file=quantum-ns-metadata-proxy-{UUID}.log',
        '--log-dir=/l',
    ]


def test_a_networks_proxy_is_bound_to_the_metadata_address():
    """On all addresses it would answer whoever reaches the DHCP port (LP#1745618)."""
    assert Proxy(state_path='/s').argv(Place.of('network', UUID), 80) == [
        'quantum-ns-metadata-proxy',
        f'--pid_file=/s/external/pids/{UUID}.pid',
        f'--network_id={UUID}',
        '--state_path=/s',
        '--metadata_port=80',
        '--metadata_host=169.254.169.254',
    ]


def test_a_networks_proxy_is_told_of_ipv6_with_the_zone_and_second():
    """The first address must be there; the second may be missing."""
    assert Proxy(state_path='/s').argv(Place.of('network', UUID), 80, 'tap0')[-2:] == [
        '--metadata_host=169.254.169.254',
        '--metadata_host=fe80::a9fe:a9fe%tap0',
    ]


def test_a_routers_proxy_listens_on_all_addresses_of_both_families():
    assert not [word for word in Proxy().argv(Place.of('router', UUID), 9697, 'qr-+') if 'host' in word]


def test_a_missing_namespace_is_named_and_nothing_is_run(tmp_path):
    attachments = Attachments(nothing_runs, proxy=Proxy(state_path=str(tmp_path)))
    with pytest.raises(NetnsError, match=f'there is no namespace qrouter-{UUID} on this host.*ip netns list'):
        attachments.attach(Place.of('router', UUID))


def test_detaching_where_the_namespace_is_gone_is_no_error(tmp_path):
    attachments = Attachments(nothing_runs, proxy=Proxy(state_path=str(tmp_path)))
    assert attachments.detach(Place.of('router', UUID)) is False


@pytest.mark.parametrize('families', [(4,), (4, 6)])
def test_rules_are_judged_by_what_they_themselves_say(families):
    rules = rules_for(port=9000, interfaces='br-+', mark='0x2/0xff', families=families)
    assert judge(rules, families) == (9000, 'yes')
    assert judge((), families) == (9697, 'no')
    for missing in rules:
        assert judge([rule for rule in rules if rule != missing], families)[1] == 'partly'


def test_a_stray_rule_of_another_port_makes_them_only_partly_right():
    stray = rules_for(port=9000, families=(4,))[-1]
    assert judge([*rules_for(families=(4,)), stray], (4,))[1] == 'partly'


class NoRules:
    """What ``attached`` reads rules from."""

    def ours(self, namespace, *, families):
        return []


def test_what_is_kept_is_listed_although_its_namespace_is_gone_and_nobody_serves_it(tmp_path):
    kept = Kept(Place.of('router', UUID), 'one_hop', 9697, ('',), workers=0)
    found = next(one for one in attached(NoRules(), state_path=str(tmp_path), kept=[kept]) if one.uuid == UUID)
    assert (found.mode, found.pid, found.namespace) == ('one_hop', None, None)
    assert found.problems == (
        f'there is no namespace qrouter-{UUID}',
        NOBODY_SERVES['one_hop'],
    )


@pytest.mark.parametrize(('kept', 'mode', 'problem'), [((), 'process', NOBODY_LISTENS), (None, 'unknown', KEEPER_AWAY)])
def test_what_nobody_serves_may_be_the_keepers_while_that_is_away(tmp_path, kept, mode, problem):
    pid_file = tmp_path / 'external' / 'pids' / f'{UUID}.pid'
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text('0')
    found = next(one for one in attached(NoRules(), state_path=str(tmp_path), kept=kept) if one.uuid == UUID)
    assert (found.mode, found.problems[1:]) == (mode, (problem,))


def test_a_port_that_guests_are_not_sent_to_is_a_problem(tmp_path):
    kept = Kept(Place.of('router', UUID), 'shared', 9000, ('',), workers=1)
    found = next(one for one in attached(NoRules(), state_path=str(tmp_path), kept=[kept]) if one.uuid == UUID)
    assert found.problems[1:] == ('the keeper listens on port 9000, guests are sent to 9697; attach it again',)


def test_a_keeper_is_needed_for_more_than_processes(tmp_path):
    attachments = Attachments(nothing_runs, proxy=Proxy(state_path=str(tmp_path)))
    with pytest.raises(NetnsError, match='mode shared needs the keeper'):
        attachments._serve(Place.of('router', UUID), 'shared', 9697, None)


class KeeperAway:
    """A keeper that was there and does not answer."""

    def attach(self, place, mode, port, hosts, taken=()):
        raise NetnsError('no keeper answers')

    def close(self, place, mode, port, host):
        raise NetnsError('no keeper answers')

    def detach(self, place):
        raise NetnsError('no keeper answers')


def test_a_keeper_that_is_away_fails_a_detach_and_not_the_start_of_a_process(tmp_path, caplog):
    attachments = Attachments(nothing_runs, proxy=Proxy(state_path=str(tmp_path)), keeping=KeeperAway())
    with pytest.raises(NetnsError, match='no keeper answers'):
        attachments.detach(Place.of('router', UUID))
    attachments._let_go(Place.of('router', UUID))
    assert f'router {UUID}: no keeper answers' in caplog.text
