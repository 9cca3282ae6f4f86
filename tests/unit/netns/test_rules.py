# SPDX-License-Identifier: Apache-2.0
"""The rules of a router, word for word: an operator compares them with ``iptables-save``."""

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.netns.rules import rules_for


def lines(rules, family):
    return [f'{rule.table} -A {rule.chain} {rule}' for rule in rules if rule.family == family]


def test_ipv4_rules():
    assert lines(rules_for(), 4) == [
        'filter -A FORWARD -d 169.254.169.254/32 -m comment --comment metadata_wsgi -j DROP',
        (
            'filter -A INPUT -p tcp -m tcp --dport 9697 -m mark --mark 0x1/0xffff'
            ' -m comment --comment metadata_wsgi -j ACCEPT'
        ),
        'filter -A INPUT ! -i lo -p tcp -m tcp --dport 9697 -m comment --comment metadata_wsgi -j DROP',
        'filter -A INPUT -m comment --comment metadata_wsgi -j quantum-l3-agent-INPUT',
        (
            'filter -A quantum-l3-agent-INPUT -d 127.0.0.1/32 -p tcp -m tcp --dport 9697'
            ' -m comment --comment metadata_wsgi -j ACCEPT'
        ),
        (
            'mangle -A PREROUTING -d 169.254.169.254/32 -i qr-+ -p tcp -m tcp --dport 80'
            ' -m comment --comment metadata_wsgi -j MARK --set-xmark 0x1/0xffff'
        ),
        'nat -A PREROUTING -m comment --comment metadata_wsgi -j quantum-l3-agent-PREROUTING',
        (
            'nat -A quantum-l3-agent-PREROUTING -d 169.254.169.254/32 -i qr-+ -p tcp -m tcp --dport 80'
            ' -m comment --comment metadata_wsgi -j REDIRECT --to-ports 9697'
        ),
    ]


def test_ipv6_rules_are_the_same_with_ipv6_addresses():
    expected = [
        line.replace('169.254.169.254/32', 'fe80::a9fe:a9fe/128').replace('127.0.0.1/32', '::1/128')
        for line in lines(rules_for(families=[4]), 4)
    ]
    assert lines(rules_for(), 6) == expected


def test_port_interfaces_and_mark_are_configurable():
    text = '\n'.join(lines(rules_for(port=8700, interfaces='br-guests', mark='0x20/0xf0', families=[4]), 4))
    assert text.count('--dport 8700') == 3
    assert text.count('--to-ports 8700') == 1
    assert text.count('-i br-guests') == 2
    assert text.count('--mark 0x20/0xf0') == text.count('--set-xmark 0x20/0xf0') == 1
    assert '9697' not in text
    assert 'qr-' not in text


def test_mark_of_all_bits_is_written_as_iptables_save_prints_it():
    text = '\n'.join(lines(rules_for(mark='0x00A', families=[4]), 4))
    assert '-m mark --mark 0xa -m' in text
    assert '--set-xmark 0xa/0xffffffff' in text


@pytest.mark.parametrize('mark', ['0x0/0xffff', '0x10000/0xffff', '', 'x', '0x1/0x1ffffffff', '-1/1', '0x1/0x2'])
def test_mark_that_matches_every_packet_or_none_is_refused(mark):
    with pytest.raises(ConfigError, match='at least one bit'):
        rules_for(mark=mark)
