# SPDX-License-Identifier: Apache-2.0
"""The packet rules of a router's namespace, as data. Pure: nothing here runs anything.

What they promise:

- A request of a guest to 169.254.169.254:80 goes to the proxy's port: the two rules of Grizzly's L3
  agent, in its words and its chains, so that an operator recognises them in ``iptables-save``.
- Only packets that come in on internal interfaces are redirected, and only redirected packets reach the
  port: they are marked on arrival, before the redirect hides where they wanted to go (LP#1187102). A
  guest that asks 10.1.1.1:9697 itself could not be told from one behind another interface.
- A packet to the metadata address is never forwarded, whatever else is missing (LP#1920778): not when
  the redirect was flushed, not for another port, not while these rules come or go.

Why some stand in the kernel's own chains and not in the agent's: an L3 agent writes its chains anew and
drops what it does not know there. What closes the router must survive that; what it knows itself, the
redirect and the acceptance, may stand where it puts them.

Why ``! -i lo``: what arrives on lo was sent from inside the namespace, by an operator who looks whether the
proxy is there. No guest's packet comes in that way, also not one to 127.0.0.1.

DHCP namespaces need no rule: the proxy there is bound to the metadata address itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from metadata_wsgi.errors import ConfigError

COMMENT = 'metadata_wsgi'
"""Every rule of ours carries it; a rule that does is ours, whatever else it says."""

ADDRESSES = {4: '169.254.169.254/32', 6: 'fe80::a9fe:a9fe/128'}
ALL_BITS = 0xFFFFFFFF
LOOPBACK = {4: '127.0.0.1/32', 6: '::1/128'}
INPUT = 'quantum-l3-agent-INPUT'
PREROUTING = 'quantum-l3-agent-PREROUTING'


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of ours: ``args`` are words in the order and spelling in which ``iptables-save`` prints them."""

    family: int
    table: str
    chain: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return ' '.join(self.args)


def rules_for(
    *, port: int = 9697, interfaces: str = 'qr-+', mark: str = '0x1/0xffff', families: Iterable[int] = (4, 6)
) -> tuple[Rule, ...]:
    """All rules of one router, in the order in which they stand at the head of their chains.

    ``port`` is the proxy's; ``interfaces`` matches the internal ones in iptables' spelling (``+`` at the end
    is any rest); ``mark`` is value/mask. ``families`` are 4 and 6. Raises ConfigError for a mark that marks nothing.
    """
    value, mask = _mark(mark)
    # As iptables-save prints them: a match of all bits without its mask, an action always with it.
    match = f'{value:#x}' if mask == ALL_BITS else f'{value:#x}/{mask:#x}'
    return tuple(
        rule for family in families for rule in _of_family(family, port, interfaces, match, f'{value:#x}/{mask:#x}')
    )


def _mark(text: str) -> tuple[int, int]:
    value, _, mask = text.partition('/')
    try:
        numbers = int(value, 0), int(mask or hex(ALL_BITS), 0)
    except ValueError:
        numbers = 0, 0
    # Without a bit in it every packet would have the mark, and the port would be open.
    if not 0 < numbers[0] & numbers[1] == numbers[0] <= numbers[1] <= ALL_BITS:
        raise ConfigError(f'mark {text}: it is value/mask with at least one bit of the mask set, as in 0x1/0xffff')
    return numbers


def _of_family(family: int, port: int, interfaces: str, match_mark: str, set_mark: str) -> tuple[Rule, ...]:
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
