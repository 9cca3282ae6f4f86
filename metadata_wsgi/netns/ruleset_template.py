# SPDX-License-Identifier: Apache-2.0
"""The rules of many routers: iptables creates them once, and netlink copies them to the other namespaces.

It is slow to run iptables for each router. CPU time per router, measured with 150 namespaces on two busy cores:

==========================================  ========  ==================
step                                        iptables  copied (this file)
==========================================  ========  ==================
add the rules to a new namespace               16 ms                2 ms
check that the rules exist                     11 ms              1.5 ms
remove the rules, if there are no others       21 ms                2 ms
==========================================  ========  ==================

``watch`` checks every router each minute. With 1,000 routers this costs 11 s of CPU time a minute with iptables, and
1.5 s with this module. The nftables module of pyroute2 takes 3 to 7 ms to read one router, because it decodes every
expression.

iptables adds the rules in a scratch namespace, and this module reads them with netlink. The module does not interpret
tables, chains and rules: the kernel creates them again from the bytes that it returned. Before the first router is
changed, the rules are copied to a second scratch namespace. ``iptables-save`` must print the wanted rules there.

In these cases the methods return None, and the caller must use iptables:

- only some of our rules exist;
- our rules must be removed, and there are rules of other programs;
- there are rules of iptables-legacy;
- a chain differs from the one that iptables creates, for example by its policy;
- the kernel refuses the change;
- iptables is not the nft variant.

Facts:

- Handles, use counts and packet counters differ between two otherwise equal rules, so they are left out.
- The kernel does not return the protocol of an extension (NFTA_RULE_COMPAT). Some versions of iptables match ports with
  an extension that needs the protocol. Such rules cannot be created again: the kernel refuses them.
- A batch is one transaction. It contains a generation number. The kernel refuses the batch if anything was changed
  since that generation.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces
from metadata_wsgi.netns.rules import COMMENT, Rule

LOG = logging.getLogger(__name__)

T = TypeVar('T')

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NLMSG_ERROR, NLMSG_DONE, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 2, 3, 16, 17
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN = 3, 4
NEWRULE, GETRULE = 6, 7
GETGEN = 16
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x400
NLA_TYPE_MASK = 0x3FFF
TABLE_NAME, TABLE_FLAGS = 1, 2
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 1, 3, 4, 5, 7
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_USERDATA = 1, 2, 4, 7
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
ATTRIBUTES_TO_COPY = {
    NEWTABLE: (TABLE_NAME, TABLE_FLAGS),
    NEWCHAIN: (CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE),
    NEWRULE: (RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_USERDATA),
}
ADDRESS_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
LEGACY_PREFIXES = {4: 'ip', 6: 'ip6'}
RECEIVE_BYTES = 1 << 17
CACHED_ATTRIBUTES = 1024
"""Number of results that each function below remembers. The namespaces of routers contain nearly the same bytes."""
NETLINK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """A table, a chain or a rule: ``kind`` is NEWTABLE, NEWCHAIN or NEWRULE."""

    kind: int
    family: int
    attributes: bytes

    def value(self, attribute: int) -> bytes:
        """The value of one netlink attribute; b'' if it is missing."""
        return _values(self.attributes).get(attribute, b'')

    @property
    def name(self) -> tuple[int, int, bytes, bytes]:
        """The kernel's identifier of a table or chain."""
        return self.kind, self.family, self.value(TABLE_NAME), self.value(CHAIN_NAME) if self.kind == NEWCHAIN else b''

    @property
    def chain(self) -> tuple[int, bytes, bytes]:
        """The chain of a rule."""
        return self.family, self.value(RULE_TABLE), self.value(RULE_CHAIN)

    @property
    def is_ours(self) -> bool:
        """Whether the bytes contain our comment. A false positive is harmless: then iptables is used."""
        return COMMENT.encode() in self.attributes


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All nftables objects of one namespace. ``rules`` have the order that they have in their chains."""

    tables_and_chains: tuple[Item, ...] = ()
    rules: tuple[Item, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tables_and_chains)

    @property
    def has_ours(self) -> bool:
        """Whether the ruleset contains any of our rules."""
        return any(rule.is_ours for rule in self.rules)

    def by_chain(self) -> dict[tuple[int, bytes, bytes], list[Item]]:
        """The rules of each chain."""
        chains: dict[tuple[int, bytes, bytes], list[Item]] = {}
        for rule in self.rules:
            chains.setdefault(rule.chain, []).append(rule)
        return chains


class RulesetTemplate:
    """Copies ``rules`` to namespaces. Threads may share the object. The first call creates the template.

    ``add_rules`` runs iptables to add the rules. ``are_rules_there`` runs iptables to check that the rules exist. Both
    are called in a scratch namespace.
    """

    def __init__(
        self, rules: Sequence[Rule], *, add_rules: Callable[[], None], are_rules_there: Callable[[], bool]
    ) -> None:
        self.rules = tuple(rules)
        self._add_rules = add_rules
        self._are_rules_there = are_rules_there
        self._lock = threading.Lock()
        self._made: Ruleset | None = None

    def apply(self, namespace: str, wanted: Sequence[Rule]) -> bool | None:
        """Replace our rules in the namespace by ``wanted``. Returns whether anything changed; None: use iptables."""
        if tuple(wanted) not in ((), self.rules) or not self._template():
            return None
        change = self._add if wanted else self._remove
        return _none_on_error(lambda: namespaces.run_in(namespace, change))

    def ours(self, namespace: str) -> list[Rule] | None:
        """Our rules in the namespace; None: use iptables to read them."""

        def read_ours() -> list[Rule] | None:
            if has_legacy_tables():
                return None
            found, _ = read_ruleset()
            if not found.has_ours:
                return []
            return [*self.rules] if self._is_in(found) else None

        return _none_on_error(lambda: namespaces.run_in(namespace, read_ours)) if self._template() else None

    def _add(self) -> bool | None:
        if has_legacy_tables():
            return None
        found, generation = read_ruleset()
        if found.has_ours:
            return False if self._is_in(found) else None
        existing = {item.name: item for item in found.tables_and_chains}
        template = self._template()
        if any(existing.get(item.name, item) != item for item in template.tables_and_chains):
            # A chain differs from the chain that iptables creates, for example by a policy.
            return None
        missing = tuple(item for item in template.tables_and_chains if item.name not in existing)
        add_ruleset(Ruleset(missing, template.rules), generation)
        return True

    def _remove(self) -> bool | None:
        if has_legacy_tables():
            return None
        found, generation = read_ruleset()
        if not found.has_ours:
            return False
        if found != self._template():
            return None
        delete_tables(found, generation)
        return True

    def _is_in(self, found: Ruleset) -> bool:
        """Whether ``found`` has all our rules, at the head of their chains, and no other rules of ours."""
        there, wanted = found.by_chain(), self._template().by_chain()
        heads = {chain: there.get(chain, [])[: len(rules)] for chain, rules in wanted.items()}
        return heads == wanted and sum(rule.is_ours for rule in found.rules) == len(self._template().rules)

    def _template(self) -> Ruleset:
        """The template. It is empty if rules cannot be copied on this host."""
        with self._lock:
            if self._made is None:
                self._made = _none_on_error(self._make_template) or Ruleset()
        return self._made

    def _make_template(self) -> Ruleset | None:
        def create() -> Ruleset:
            self._add_rules()
            return read_ruleset()[0]

        def copy_reads_back() -> bool:
            add_ruleset(template, read_ruleset()[1])
            return read_ruleset()[0] == template and self._are_rules_there()

        template = namespaces.run_in_scratch(create)
        return template if template and namespaces.run_in_scratch(copy_reads_back) else None


def has_any_rules(namespace: str, family: int) -> bool:
    """Whether the namespace has a table for ``family``, of iptables-nft or iptables-legacy; True if it is unknown.

    A new router's namespace has no tables, so ``iptables-save`` need not run. On a host without ip6tables there are no
    IPv6 tables, so the missing ``ip6tables-save`` is not run either.
    """
    try:
        return namespaces.run_in(namespace, lambda: has_legacy_tables([family]) or _has_nftables(family))
    except (NetnsError, OSError):
        return True


def has_legacy_rules(namespace: str) -> bool:
    """Whether the namespace has a table of iptables-legacy; True if it is unknown."""
    try:
        return namespaces.run_in(namespace, has_legacy_tables)
    except (NetnsError, OSError):
        return True


def has_legacy_tables(families: Sequence[int] = (4, 6)) -> bool:
    """Whether iptables-legacy has a table of one of ``families`` in the namespace of the calling thread.

    The kernel lists a table in /proc/net/ip_tables_names (ip6_tables_names) from the table's first use on. Without the
    kernel's module the file does not exist.
    """
    names = [Path(f'/proc/thread-self/net/{LEGACY_PREFIXES[family]}_tables_names') for family in families]
    return any(name.read_text(encoding='ascii').strip() for name in names if os.path.exists(name))


def _has_nftables(family: int) -> bool:
    with _netlink_socket() as sock:
        return any(table.family == ADDRESS_FAMILIES[family] for table in _dump(sock, GETTABLE))


def read_ruleset() -> tuple[Ruleset, int]:
    """The ruleset in the namespace of the calling thread, and the kernel's generation number. Raises OSError."""
    with _netlink_socket() as sock:
        generation = _generation(sock)
        tables_and_chains = (*sorted(_dump(sock, GETTABLE)), *sorted(_dump(sock, GETCHAIN)))
        rules = sorted(_dump(sock, GETRULE), key=lambda rule: rule.chain) if tables_and_chains else []
    return Ruleset(tables_and_chains, tuple(rules)), generation


def add_ruleset(wanted: Ruleset, generation: int) -> None:
    """Add ``wanted`` in one transaction, the rules at the head of their chains.

    Raises OSError if the kernel refuses, for example because something was changed since ``generation``.
    """
    # Each rule is inserted before the existing ones, so the last rule is sent first.
    items = (*wanted.tables_and_chains, *reversed(wanted.rules))
    _send_batch([(item.kind, NLM_F_CREATE, item.family, item.attributes) for item in items], generation)


def delete_tables(found: Ruleset, generation: int) -> None:
    """Delete the tables of ``found`` with their contents, in one transaction. Raises OSError like ``add_ruleset``."""
    tables = [item for item in found.tables_and_chains if item.kind == NEWTABLE]
    _send_batch([(DELTABLE, 0, table.family, table.attributes) for table in tables], generation)


def _netlink_socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.settimeout(NETLINK_TIMEOUT_S)
    return sock


def _message(
    kind: int, flags: int, family: int, attributes: bytes = b'', sequence: int = 1, resource_id: int = 0
) -> bytes:
    header = struct.pack('=IHHII', 20 + len(attributes), kind, NLM_F_REQUEST | flags, sequence, 0)
    return header + struct.pack('>BBH', family, 0, resource_id) + attributes


def _generation(sock: socket.socket) -> int:
    sock.send(_message(NFNL_SUBSYS_NFTABLES << 8 | GETGEN, 0, 0))
    _, _, attributes = next(_receive(sock))
    return int.from_bytes(dict(_attributes(attributes))[1], 'big')


def _dump(sock: socket.socket, get: int) -> list[Item]:
    """All tables, chains or rules of all families."""
    sock.send(_message(NFNL_SUBSYS_NFTABLES << 8 | get, NLM_F_DUMP, 0))
    items = []
    for message_type, family, attributes in _receive(sock):
        if message_type == NLMSG_DONE:
            break
        kind = message_type & 0xFF
        items.append(Item(kind, family, _attributes_to_copy(kind, attributes)))
    return items


def _send_batch(operations: Sequence[tuple[int, int, int, bytes]], generation: int) -> None:
    """Execute (message, flags, family, attributes) in one transaction. Raises OSError if the kernel refuses any."""
    generation_attribute = struct.pack('=HH', 8, 1) + struct.pack('>I', generation)
    begin_batch = _message(NFNL_MSG_BATCH_BEGIN, 0, 0, generation_attribute, 0, NFNL_SUBSYS_NFTABLES)
    messages = [begin_batch]
    for sequence, (kind, flags, family, attributes) in enumerate(operations, 1):
        # The kernel acknowledges only the last message, when all are in force. Errors of the others arrive before.
        flags |= NLM_F_ACK if sequence == len(operations) else 0
        messages.append(_message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, family, attributes, sequence))
    messages.append(_message(NFNL_MSG_BATCH_END, 0, 0, b'', len(operations) + 1, NFNL_SUBSYS_NFTABLES))
    with _netlink_socket() as sock:
        sock.send(b''.join(messages))
        next(_receive(sock))


def _receive(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """(message type, family, attributes) of each received message. Raises OSError for an error message."""
    while True:
        packet = sock.recv(RECEIVE_BYTES)
        offset = 0
        while offset < len(packet):
            size, message_type = struct.unpack_from('=IH', packet, offset)
            if message_type == NLMSG_ERROR:
                (code,) = struct.unpack_from('=i', packet, offset + 16)
                if code:
                    raise OSError(-code, f'nftables: {errno.errorcode.get(-code, -code)}')
            yield message_type, packet[offset + 16], packet[offset + 20 : offset + size]
            offset += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each netlink attribute."""
    offset = 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from('=HH', data, offset)
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


@functools.lru_cache(maxsize=CACHED_ATTRIBUTES)
def _values(data: bytes) -> Mapping[int, bytes]:
    return dict(_attributes(data))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack('=HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)


@functools.lru_cache(maxsize=CACHED_ATTRIBUTES)
def _attributes_to_copy(kind: int, attributes: bytes) -> bytes:
    """The attributes that are needed to create the item again. The packet counters of a rule are 0."""
    values = dict(_attributes(attributes))
    if kind == NEWRULE and RULE_EXPRESSIONS in values:
        expressions = _attributes(values[RULE_EXPRESSIONS])
        values[RULE_EXPRESSIONS] = b''.join(_attribute(1, _without_count(expression)) for _, expression in expressions)
    return b''.join(_attribute(type_, values[type_]) for type_ in ATTRIBUTES_TO_COPY[kind] if type_ in values)


@functools.lru_cache(maxsize=CACHED_ATTRIBUTES)
def _without_count(expression: bytes) -> bytes:
    name = dict(_attributes(expression)).get(EXPRESSION_NAME)
    if name != b'counter\0':
        return expression
    return _attribute(EXPRESSION_NAME, name) + _attribute(EXPRESSION_DATA, b'')


def _none_on_error(function: Callable[[], T]) -> T | None:
    try:
        return function()
    except (NetnsError, OSError) as error:
        LOG.debug('Rules are not copied: %s', error)
        return None
