# SPDX-License-Identifier: Apache-2.0
"""Bring a namespace's packet rules to what is wanted, and out of it again.

Reads ``iptables-save``, computes the difference and applies it in one ``iptables-restore --noflush`` for
each family; nothing is run when nothing differs. Ours is what carries the comment, of whatever port
or shape; what is not ours is neither moved nor removed.

Fail-closed: a table is changed at once, and tables change in an order in which no packet to the
metadata address gets out in between: first what closes, then what lets in; back in reverse.

Facts:

- iptables-nft and iptables-legacy keep separate rules, and a packet meets both. So the one that is used
  already is used on, and leftovers are looked for in both.
- ``:chain`` in restore's input empties a chain that exists, also with ``--noflush``; ``-N`` refuses.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import iptables_backend
from metadata_wsgi.netns.rules import COMMENT, Rule
from metadata_wsgi.netns.ruleset_template import Pattern
from metadata_wsgi.netns.runner import Runner, search_path

CLOSING_FIRST = ('filter', 'mangle', 'nat')


@dataclass(slots=True)
class Table:
    """One table as ``iptables-save`` shows it: chains with their rules as text; ``builtin`` are the kernel's own."""

    chains: dict[str, list[str]] = field(default_factory=dict)
    builtin: set[str] = field(default_factory=set)


def parse(saved: str) -> dict[str, Table]:
    """Read the output of ``iptables-save`` (either kind). Lines that are not understood belong to others."""
    tables: dict[str, Table] = {}
    table = Table()
    for line in saved.splitlines():
        if line.startswith('*'):
            table = tables.setdefault(line[1:].strip(), Table())
        elif line.startswith(':'):
            chain, policy = line[1:].split()[:2]
            table.chains.setdefault(chain, [])
            if policy != '-':
                table.builtin.add(chain)
        elif line.startswith('-A '):
            _, chain, args = line.split(' ', 2)
            table.chains.setdefault(chain, []).append(args)
    return tables


def is_ours(args: str) -> bool:
    """Whether a rule carries our comment."""
    return ('--comment', COMMENT) in pairwise(_words(args))


def difference(current: Mapping[str, Table], wanted: Sequence[Rule]) -> str:
    """Input for ``iptables-restore --noflush`` that leads from ``current`` to ``wanted``; '' if there is nothing to do.

    ``wanted`` are the rules of one family; none of them means that every trace is removed.
    """
    parts = []
    for name in CLOSING_FIRST if wanted else reversed(CLOSING_FIRST):
        mine = [rule for rule in wanted if rule.table == name]
        lines = _table_difference(current.get(name, Table()), mine)
        if lines:
            parts.append('\n'.join([f'*{name}', *lines, 'COMMIT', '']))
    return ''.join(parts)


def _table_difference(table: Table, wanted: Sequence[Rule]) -> list[str]:
    by_chain: dict[str, list[str]] = {}
    for rule in wanted:
        by_chain.setdefault(rule.chain, []).append(str(rule))
    make, out, put = [], [], []
    emptied = set()
    for chain in dict.fromkeys([*by_chain, *table.chains]):
        there, mine = table.chains.get(chain, []), by_chain.get(chain, [])
        ours = [args for args in there if is_ours(args)]
        if chain not in table.chains and not _builtin(chain):
            make.append(f'-N {chain}')
        if there[: len(mine)] == mine and len(ours) == len(mine):
            continue
        out += [f'-D {chain} {args}' for args in ours]
        put += [f'-I {chain} {place} {args}' for place, args in enumerate(mine, 1)]
        emptied |= {chain, *(_target(args) for args in ours)} if ours else set()
    return [*make, *out, *put, *_chains_to_delete(table, by_chain, emptied)]


def _chains_to_delete(table: Table, by_chain: Mapping[str, Sequence[str]], emptied: Iterable[str]) -> list[str]:
    """Chains that held a rule of ours or were jumped to by one, and that nobody needs now."""
    needed = {_target(args) for rules in by_chain.values() for args in rules} | set(by_chain)
    for chain, there in table.chains.items():
        foreign = [args for args in there if not is_ours(args)]
        needed |= {_target(args) for args in foreign}
        if foreign:
            needed.add(chain)
    return [f'-X {chain}' for chain in sorted(emptied) if chain in table.chains and chain not in table.builtin | needed]


def _builtin(chain: str) -> bool:
    # A namespace in which iptables was never used shows no chain at all; the kernel's own are upper case.
    return chain.isupper() and '-' not in chain


def _target(args: str) -> str:
    """The chain or target that a rule jumps or goes to; '' if none."""
    return next((word for flag, word in pairwise(_words(args)) if flag in ('-j', '-g')), '')


def _words(args: str) -> list[str]:
    """A comment may have blanks, quotes, and text that looks like a rule: iptables-save quotes as a shell does."""
    if '"' not in args and "'" not in args and '\\' not in args:
        # Most rules, and all of ours: shlex reads character by character, half of the time an attach took.
        return args.split()
    try:
        return shlex.split(args)
    except ValueError:
        return []


class Iptables:
    """Rules of namespaces. ``binary`` is e.g. ``iptables-nft``; without it, it is found out per namespace.

    ``many`` are rules that many namespaces get, or may have: they are copied where that can be (``pattern``).
    """

    def __init__(
        self,
        runner: Runner,
        *,
        binary: str | None = None,
        many: Sequence[Rule] = (),
        find_program: Callable[[str], str | None] = lambda name: shutil.which(name, path=search_path()),
        kinds: Callable[[str], Iterable[str]] = iptables_backend.kinds,
    ) -> None:
        self._runner = runner
        self._binary = binary
        self._find_program = find_program
        self._kinds = kinds
        self._pattern = Pattern(many, lay=self._lay_pattern, is_laid=self._pattern_is_laid) if many else None

    def apply(self, namespace: str, wanted: Sequence[Rule], *, families: Iterable[int] = (4, 6)) -> bool:
        """Make ``wanted`` (none: nothing) the rules of ours in the namespace; whether anything had to be done.

        Raises NetnsError with iptables' own words.
        """
        copied = self._pattern.apply(namespace, wanted) if self._pattern else None
        if copied is not None:
            return copied
        changed = False
        for family in families:
            rules = [rule for rule in wanted if rule.family == family]
            chosen, *others = self._binaries(namespace, family)
            changed |= self._settle(namespace, chosen, rules)
            for other in others:
                changed |= self._settle(namespace, other, [])
        return changed

    def ours(self, namespace: str, *, families: Iterable[int] = (4, 6)) -> list[Rule]:
        """Every rule of ours that is in the namespace, of whatever port or shape."""
        known = self._pattern.ours(namespace) if self._pattern else None
        if known is not None:
            return known
        return [
            Rule(family, table, chain, tuple(args.split()))
            for family in families
            for binary in self._binaries(namespace, family)
            for table, content in self._read(namespace, binary).items()
            for chain, rules in content.chains.items()
            for args in rules
            if is_ours(args)
        ]

    def _lay_pattern(self) -> None:
        for family, rules in self._pattern_by_family():
            self._runner([f'{self._named(family)}-restore', '--noflush', '--wait'], stdin=difference({}, rules))

    def _pattern_is_laid(self) -> bool:
        return not any(
            difference(parse(self._runner([f'{self._named(family)}-save'])), rules)
            for family, rules in self._pattern_by_family()
        )

    def _pattern_by_family(self) -> list[tuple[int, list[Rule]]]:
        rules = self._pattern.rules if self._pattern else ()
        families = sorted({rule.family for rule in rules})
        return [(family, [rule for rule in rules if rule.family == family]) for family in families]

    def _settle(self, namespace: str, binary: str, wanted: Sequence[Rule]) -> bool:
        # Another program may write between our reading and writing. Nothing of its is lost then, because
        # rules are removed by what they say and not by number: restore refuses, and we read again.
        for last_try in (False, True):
            text = difference(self._read(namespace, binary), wanted)
            if not text:
                return False
            try:
                self._runner([f'{binary}-restore', '--noflush', '--wait'], stdin=text, namespace=namespace)
            except NetnsError:
                if last_try:
                    raise
            else:
                break
        return True

    def _read(self, namespace: str, binary: str) -> dict[str, Table]:
        if not self._kinds(namespace):
            return {}
        return parse(self._runner([f'{binary}-save'], namespace=namespace))

    def _binaries(self, namespace: str, family: int) -> list[str]:
        """The iptables to use, and others in which there may be something of ours."""
        prefix = self._named(family)
        if self._binary:
            return [prefix]
        legacy, nft = f'{prefix}-legacy', f'{prefix}-nft'
        if iptables_backend.LEGACY in self._kinds(namespace) and self._find_program(f'{legacy}-save'):
            tables = self._read(namespace, legacy)
            if any(rules for table in tables.values() for rules in table.chains.values()):
                return [legacy, nft] if self._find_program(f'{nft}-save') else [legacy]
        return [prefix]

    def _named(self, family: int) -> str:
        return (self._binary or 'iptables').replace('iptables', 'ip6tables' if family == 6 else 'iptables')
