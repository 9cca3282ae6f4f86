# SPDX-License-Identifier: Apache-2.0
"""Adds, replaces and removes the packet rules of this package in one namespace.

This module reads ``iptables-save``, computes the difference to the wanted rules, and applies the difference with one
``iptables-restore --noflush`` for each family. If there is no difference, ``iptables-restore`` is not run. Every rule
with the comment ``metadata_wsgi`` is ours, even if its port or form is old. Other rules are neither moved nor removed.

Each table is changed atomically. The table ``filter`` has the rules that drop packets. It is changed first when rules
are added, and last when all are removed. So no packet to the metadata address can leave the router during the change.

Facts:

- iptables-nft and iptables-legacy have separate rules, and a packet passes through the rules of both. So rules are
  added with the variant that the namespace uses, and old rules are searched in both variants.
- ``:chain`` in the input of iptables-restore empties an existing chain, even with ``--noflush``. ``-N`` fails if the
  chain exists.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import ruleset_template
from metadata_wsgi.netns.rules import ADDRESSES, COMMENT, Rule
from metadata_wsgi.netns.ruleset_template import RulesetTemplate
from metadata_wsgi.netns.runner import Runner, search_path

TABLES = ('filter', 'mangle', 'nat')
REDIRECT_OF_METADATA = {('-d', ADDRESSES[4]), ('--dport', '80'), ('-j', 'REDIRECT')}
"""Options, with their values, that each redirect of 169.254.169.254:80 has. An L3 agent may add other options."""


@dataclass(slots=True)
class Table:
    """One table in the output of ``iptables-save``: the rules of each chain, and the kernel's chains (``builtin``)."""

    chains: dict[str, list[str]] = field(default_factory=dict)
    builtin: set[str] = field(default_factory=set)


def parse(saved: str) -> dict[str, Table]:
    """Parse the output of ``iptables-save`` (nft or legacy). Unknown lines are ignored."""
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
    """Whether a rule has our comment."""
    return ('--comment', COMMENT) in pairwise(_words(args))


def difference(current: Mapping[str, Table], wanted: Sequence[Rule]) -> str:
    """Input for ``iptables-restore --noflush`` that changes ``current`` to ``wanted``; '' if nothing differs.

    ``wanted`` are the rules of one family. An empty list removes all our rules, and the chains that
    only our rules use.
    """
    parts = []
    for name in TABLES if wanted else reversed(TABLES):
        rules = [rule for rule in wanted if rule.table == name]
        lines = _table_difference(current.get(name, Table()), rules)
        if lines:
            parts.append('\n'.join([f'*{name}', *lines, 'COMMIT', '']))
    return ''.join(parts)


def _table_difference(table: Table, wanted: Sequence[Rule]) -> list[str]:
    by_chain: dict[str, list[str]] = {}
    for rule in wanted:
        by_chain.setdefault(rule.chain, []).append(str(rule))
    new_chains, deletions, insertions = [], [], []
    maybe_unused = set()
    for chain in dict.fromkeys([*by_chain, *table.chains]):
        existing, wanted_here = table.chains.get(chain, []), by_chain.get(chain, [])
        ours = [args for args in existing if is_ours(args)]
        if chain not in table.chains and not _is_builtin(chain):
            new_chains.append(f'-N {chain}')
        if existing[: len(wanted_here)] == wanted_here and len(ours) == len(wanted_here):
            continue
        deletions += [f'-D {chain} {args}' for args in ours]
        insertions += [f'-I {chain} {number} {args}' for number, args in enumerate(wanted_here, 1)]
        maybe_unused |= {chain, *(_jump_target(args) for args in ours)} if ours else set()
    return [*new_chains, *deletions, *insertions, *_chains_to_delete(table, by_chain, maybe_unused)]


def _chains_to_delete(table: Table, by_chain: Mapping[str, Sequence[str]], maybe_unused: Iterable[str]) -> list[str]:
    """Commands that delete the chains of ``maybe_unused`` that no rule needs after the change.

    ``maybe_unused`` has the chains that had rules of ours, or to which such a rule jumped.
    """
    used = {_jump_target(args) for rules in by_chain.values() for args in rules} | set(by_chain)
    for chain, existing in table.chains.items():
        foreign = [args for args in existing if not is_ours(args)]
        used |= {_jump_target(args) for args in foreign}
        if foreign:
            used.add(chain)
    kept = table.builtin | used
    return [f'-X {chain}' for chain in sorted(maybe_unused) if chain in table.chains and chain not in kept]


def _is_builtin(chain: str) -> bool:
    # The name decides, because iptables-save shows no chains if iptables was never used in the namespace.
    return chain.isupper() and '-' not in chain


def _jump_target(args: str) -> str:
    """The chain or target of a rule's -j or -g; '' if it has none."""
    return next((word for flag, word in pairwise(_words(args)) if flag in ('-j', '-g')), '')


def _words(args: str) -> list[str]:
    """The words of a rule. iptables-save quotes comments as a shell does, because they may contain blanks."""
    if '"' not in args and "'" not in args and '\\' not in args:
        # Most rules, and all of ours, have no quotes. shlex would take half of the time of an attach.
        return args.split()
    try:
        return shlex.split(args)
    except ValueError:
        return []


class Iptables:
    """Reads and changes the rules of namespaces.

    ``binary`` is, for example, ``iptables-nft``. By default the variant that the namespace uses is taken.
    ``bulk_rules`` are rules for many namespaces. They are copied if possible (``ruleset_template``).
    ``lock(namespace)`` is held while the rules of a namespace are read and changed.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        binary: str | None = None,
        bulk_rules: Sequence[Rule] = (),
        lock: Callable[[str], AbstractContextManager[None]] = lambda _namespace: nullcontext(),
        find_program: Callable[[str], str | None] = lambda name: shutil.which(name, path=search_path()),
        has_any_rules: Callable[[str, int], bool] = ruleset_template.has_any_rules,
        has_legacy_rules: Callable[[str], bool] = ruleset_template.has_legacy_rules,
    ) -> None:
        self._runner = runner
        self._binary = binary
        self._lock = lock
        self._find_program = find_program
        self._has_any_rules = has_any_rules
        self._has_legacy_rules = has_legacy_rules
        self._template = (
            RulesetTemplate(bulk_rules, add_rules=self._add_bulk_rules, are_rules_there=self._are_bulk_rules_there)
            if bulk_rules
            else None
        )

    def apply(self, namespace: str, wanted: Sequence[Rule], *, families: Iterable[int] = (4, 6)) -> bool:
        """Replace our rules in the namespace by ``wanted``. An empty ``wanted`` removes our rules.

        Returns whether anything changed. If iptables fails, raises NetnsError with its error message.
        """
        return self.replace(namespace, wanted, families=families) is not None

    def replace(
        self, namespace: str, wanted: Sequence[Rule], *, families: Iterable[int] = (4, 6)
    ) -> tuple[Rule, ...] | None:
        """Like ``apply``, but returns our former rules, to undo the change; None if nothing changed.

        If one family fails, the former rules of the other family are restored before NetnsError is raised.
        """
        with self._lock(namespace):
            copied = self._template.apply(namespace, wanted) if self._template else None
            if self._template and copied is not None:
                # The template changes only namespaces with none of our rules, or with exactly its rules.
                return (() if wanted else self._template.rules) if copied else None
            former: list[Rule] = []
            changed: list[int] = []
            for family in families:
                rules = [rule for rule in wanted if rule.family == family]
                try:
                    replaced = self._replace_in_family(namespace, family, rules)
                except NetnsError:
                    for done in changed:
                        undo = [rule for rule in former if rule.family == done]
                        self._replace_in_family(namespace, done, undo)
                    raise
                if replaced is not None:
                    changed.append(family)
                    former += replaced
            return tuple(former) if changed else None

    def ours(self, namespace: str, *, families: Iterable[int] = (4, 6)) -> list[Rule]:
        """All rules in the namespace with our comment, including old rules."""
        found = self._template.ours(namespace) if self._template else None
        if found is not None:
            return found
        return [
            rule
            for family in families
            for binary in self._binaries(namespace, family)
            for rule in _our_rules(family, self._read(namespace, binary, family))
        ]

    def redirect_ports(self, namespace: str) -> set[int]:
        """The ports to which rules in the namespace redirect requests to 169.254.169.254:80.

        The rules of every program count. An L3 agent adds rules of its own, without our comment.
        """
        found = [self._read(namespace, binary, 4).get('nat', Table()) for binary in self._binaries(namespace, 4)]
        rules = [pairwise(_words(args)) for table in found for chain in table.chains.values() for args in chain]
        ports = [one.get('--to-ports', '') for one in map(dict, rules) if one.items() >= REDIRECT_OF_METADATA]
        return {int(port) for port in ports if port.isdecimal()}

    def _add_bulk_rules(self) -> None:
        for family, rules in self._bulk_rules_by_family():
            restore = [f'{self._family_binary(family)}-restore', '--noflush', '--wait']
            self._runner(restore, stdin=difference({}, rules))

    def _are_bulk_rules_there(self) -> bool:
        return not any(
            difference(parse(self._runner([f'{self._family_binary(family)}-save'])), rules)
            for family, rules in self._bulk_rules_by_family()
        )

    def _bulk_rules_by_family(self) -> list[tuple[int, list[Rule]]]:
        rules = self._template.rules if self._template else ()
        families = sorted({rule.family for rule in rules})
        return [(family, [rule for rule in rules if rule.family == family]) for family in families]

    def _replace_in_family(self, namespace: str, family: int, wanted: Sequence[Rule]) -> list[Rule] | None:
        """Replace our rules of one family. Returns our former rules, None if nothing changed."""
        binary, *others = self._binaries(namespace, family)
        results = [self._replace_with(namespace, binary, family, wanted)]
        results += [self._replace_with(namespace, other, family, []) for other in others]
        if all(result is None for result in results):
            return None
        return [rule for result in results for rule in result or ()]

    def _replace_with(self, namespace: str, binary: str, family: int, wanted: Sequence[Rule]) -> list[Rule] | None:
        # Another program may change rules between our read and our write. Its rules are not lost: we delete rules
        # by content and not by number. If a rule is missing, iptables-restore fails, and the second attempt reads
        # again.
        for is_last_attempt in (False, True):
            tables = self._read(namespace, binary, family)
            text = difference(tables, wanted)
            if not text:
                return None
            try:
                self._runner([f'{binary}-restore', '--noflush', '--wait'], stdin=text, namespace=namespace)
            except NetnsError:
                if is_last_attempt:
                    raise
            else:
                return _our_rules(family, tables)
        raise AssertionError

    def _read(self, namespace: str, binary: str, family: int) -> dict[str, Table]:
        if not self._has_any_rules(namespace, family):
            return {}
        return parse(self._runner([f'{binary}-save'], namespace=namespace))

    def _binaries(self, namespace: str, family: int) -> list[str]:
        """The iptables program to use, then the program of the other variant if it may have rules of ours too."""
        prefix = self._family_binary(family)
        if self._binary:
            return [prefix]
        legacy, nft = f'{prefix}-legacy', f'{prefix}-nft'
        if self._has_legacy_rules(namespace) and self._find_program(f'{legacy}-save'):
            tables = self._read(namespace, legacy, family)
            if any(rules for table in tables.values() for rules in table.chains.values()):
                return [legacy, nft] if self._find_program(f'{nft}-save') else [legacy]
        return [prefix]

    def _family_binary(self, family: int) -> str:
        return (self._binary or 'iptables').replace('iptables', 'ip6tables' if family == 6 else 'iptables')


def _our_rules(family: int, tables: Mapping[str, Table]) -> list[Rule]:
    return [
        Rule(family, name, chain, tuple(args.split()))
        for name, table in tables.items()
        for chain, rules in table.chains.items()
        for args in rules
        if is_ours(args)
    ]


def kernel_families() -> tuple[int, ...]:
    """(4, 6), or (4,) if IPv6 is disabled in this kernel: then IPv6 rules cannot be added and are not needed."""
    return (4, 6) if os.path.exists('/proc/net/if_inet6') else (4,)
