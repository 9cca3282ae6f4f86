# SPDX-License-Identifier: Apache-2.0
"""The packet rules of a router's namespace, as data. No function here runs a program.

The rules guarantee:

- A request from an instance to 169.254.169.254:80 is redirected to the proxy's port. The redirect rule and the accept
  rule are those of Grizzly's L3 agent, with the same options and in the same chains. So an operator recognises them in
  ``iptables-save``.
- Only packets that arrive on internal interfaces are redirected, and only redirected packets reach the port. A packet
  to be redirected gets a mark on arrival, before the redirect changes its destination (LP#1187102). Without the mark,
  other packets to the proxy's port, for example from outside to 10.1.1.1:9697, would look like redirected packets.
- A packet to the metadata address is never forwarded (LP#1920778). This also holds for other ports, after another
  program has removed the redirect, and while these rules are added or removed.

An L3 agent rewrites its own chains and removes rules that it did not add. The rules that drop packets must stay, so
they are in the kernel's chains. The redirect and the accept rule are also rules of the L3 agent, so they may be in the
L3 agent's chains.

``! -i lo`` excludes packets on lo: a test of the proxy from inside the namespace sends them. No packet from an
instance arrives on lo.

DHCP namespaces need no rules, because the proxy listens on the metadata address itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from metadata_wsgi.errors import ConfigError

COMMENT = 'metadata_wsgi'
"""All rules of this package have this comment. Every rule with this comment is treated as a rule of this package."""

ADDRESSES = {4: '169.254.169.254/32', 6: 'fe80::a9fe:a9fe/128'}
ALL_BITS = 0xFFFFFFFF
LOOPBACK = {4: '127.0.0.1/32', 6: '::1/128'}
INPUT = 'quantum-l3-agent-INPUT'
PREROUTING = 'quantum-l3-agent-PREROUTING'

DEFAULT_PORT = 9697
"""TCP port of the namespace proxy in a router's namespace, as in Neutron."""
DEFAULT_INTERFACES = 'qr-+'
"""A router's internal interfaces, as in Neutron."""
DEFAULT_MARK = '0x1/0xffff'
"""The mark that Neutron's rules set on packets to 169.254.169.254."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One of our rules. ``args`` are its words, in the order and spelling of ``iptables-save``."""

    family: int
    table: str
    chain: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return ' '.join(self.args)


def rules_for(
    *,
    port: int = DEFAULT_PORT,
    interfaces: str = DEFAULT_INTERFACES,
    mark: str = DEFAULT_MARK,
    families: Iterable[int] = (4, 6),
) -> tuple[Rule, ...]:
    """All rules of one router, in their order at the head of their chains.

    ``port`` is the port of the proxy. ``interfaces`` is a pattern of the internal interfaces, as in iptables (``+`` at
    the end matches any characters). ``mark`` is value/mask. ``families`` are 4 and 6. Raises ConfigError if the mark
    has no bit of the mask set.
    """
    value, mask = _parse_mark(mark)
    # The format of iptables-save: a match of all bits has no mask, an action always has a mask.
    match = f'{value:#x}' if mask == ALL_BITS else f'{value:#x}/{mask:#x}'
    return tuple(
        rule
        for family in families
        for rule in _rules_of_family(family, port, interfaces, match, f'{value:#x}/{mask:#x}')
    )


def redirect_port(rules: Iterable[Rule]) -> int | None:
    """The port to which the rules redirect; None if there is no redirect."""
    for rule in rules:
        if '--to-ports' in rule.args:
            return int(rule.args[rule.args.index('--to-ports') + 1])
    return None


def _parse_mark(text: str) -> tuple[int, int]:
    value, _, mask = text.partition('/')
    try:
        numbers = int(value, 0), int(mask or hex(ALL_BITS), 0)
    except ValueError:
        numbers = 0, 0
    # If no bit were set, every packet would have the mark, and the port would be open.
    if not 0 < numbers[0] & numbers[1] == numbers[0] <= numbers[1] <= ALL_BITS:
        raise ConfigError(f'mark {text}: it is value/mask with at least one bit of the mask set, as in 0x1/0xffff')
    return numbers


@functools.lru_cache(maxsize=16)
def _rules_of_family(family: int, port: int, interfaces: str, match_mark: str, set_mark: str) -> tuple[Rule, ...]:
    to_metadata = f'-d {ADDRESSES[family]} -i {interfaces} -p tcp -m tcp --dport 80'
    to_port = f'-p tcp -m tcp --dport {port}'

    def rule(table: str, chain: str, match: str, action: str) -> Rule:
        return Rule(family, table, chain, tuple(f'{match} -m comment --comment {COMMENT} -j {action}'.split()))

    return (
        rule('filter', 'FORWARD', f'-d {ADDRESSES[family]}', 'DROP'),
        rule('filter', 'INPUT', f'{to_port} -m mark --mark {match_mark}', 'ACCEPT'),
        rule('filter', 'INPUT', f'! -i lo {to_port}', 'DROP'),
        rule('filter', 'INPUT', '', INPUT),
        rule('filter', INPUT, f'-d {LOOPBACK[family]} {to_port}', 'ACCEPT'),
        rule('mangle', 'PREROUTING', to_metadata, f'MARK --set-xmark {set_mark}'),
        rule('nat', 'PREROUTING', '', PREROUTING),
        rule('nat', PREROUTING, to_metadata, f'REDIRECT --to-ports {port}'),
    )
