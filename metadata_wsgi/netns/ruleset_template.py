# SPDX-License-Identifier: Apache-2.0
"""The rules of many routers: iptables creates them once, and netlink copies them to the other namespaces.

It is slow to run iptables for each router: 5 to 15 ms of CPU time, against less than 1 ms with this module
(doc/performance.md, "Attach"). ``watch`` checks every router each minute. The nftables module of pyroute2 takes 3 to
7 ms to read one router, because it decodes every expression.

iptables adds the rules in a scratch namespace, and this module reads them with netlink. The module does not interpret
tables, chains and rules: the kernel creates them again from the bytes that it returned. Before the first router is
changed, the rules are copied to a second scratch namespace. ``iptables-save`` must print the wanted rules there.

Our rules are removed by their handles, and then the chains that nothing else uses. Rules of other programs are not
touched. If the namespace has nothing but the copy, its tables are deleted.

In these cases the methods return None, and the caller must use iptables:

- only some of our rules exist, or they are not at the head of their chains;
- there are rules of iptables-legacy;
- a chain differs from the one that iptables creates, for example by its policy;
- the kernel refuses the change;
- iptables is not the nft variant.

Facts:

- Handles, use counts and packet counters differ between two otherwise equal rules, so they are left out of comparisons.
- The use count of a chain is the number of its rules and of the rules that jump to it. If it is the same as in the
  template, no rule of another program uses the chain.
- The kernel does not return the protocol of an extension (NFTA_RULE_COMPAT). Some versions of iptables match ports with
  an extension that needs the protocol. Such rules cannot be created again: the kernel refuses them.
- A batch is one transaction. It contains a generation number. The kernel refuses the batch if anything was changed
  since that generation.
- The namespaces of routers contain nearly the same bytes. So a dump is decoded once, and then found by its bytes.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
GETGEN = 16
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x10, 0x300, 0x400
GEN_ID = 1
NLA_TYPE_MASK = 0x3FFF
TABLE_NAME, TABLE_FLAGS = 1, 2
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_USE, CHAIN_TYPE = 1, 3, 4, 5, 6, 7
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS, RULE_USERDATA = 1, 2, 3, 4, 7
ATTRIBUTES_TO_COPY = {
    NEWTABLE: (TABLE_NAME, TABLE_FLAGS),
    NEWCHAIN: (CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE),
    NEWRULE: (RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_USERDATA),
}
ADDRESS_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
LEGACY_PREFIXES = {4: 'ip', 6: 'ip6'}
RECEIVE_BYTES = 1 << 17
RULES, HAS_LEGACY_TABLES = 'rules', 'has_legacy_tables'
"""Keys in ``namespaces.facts``."""
CACHED_DUMPS = 32
"""Number of dumps that are remembered."""
NETLINK_TIMEOUT_S = 10.0


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack('=HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)


COUNTER = re.compile(
    # NFTA_EXPR_NAME, NFTA_EXPR_DATA with NFTA_COUNTER_BYTES and NFTA_COUNTER_PACKETS
    re.escape(_attribute(1, b'counter\0') + struct.pack('=HHHH', 28, 2, 12, 1))
    + b'.{8}'
    + re.escape(struct.pack('=HH', 12, 2))
    + b'.{8}',
    re.DOTALL,
)
"""The expression that counts the packets of a rule."""
COUNTER_OF_NO_PACKETS = _attribute(1, b'counter\0') + _attribute(2, _attribute(1, bytes(8)) + _attribute(2, bytes(8)))

Operations = tuple[tuple[int, int, int, bytes], ...]
"""(message, flags, family, attributes) of each change."""


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """A table, a chain or a rule: ``kind`` is NEWTABLE, NEWCHAIN or NEWRULE.

    ``attributes`` are those that are needed to create the item again. ``handle`` is the kernel's number of a rule, and
    ``use`` the use count of a chain.
    """

    kind: int
    family: int
    attributes: bytes
    handle: bytes = field(default=b'', compare=False)
    use: bytes = field(default=b'', compare=False)

    def value(self, attribute: int) -> bytes:
        """The value of one netlink attribute; b'' if it is missing."""
        return dict(_attributes(self.attributes)).get(attribute, b'')

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


class Rules:
    """All rules of one namespace, in the order that they have in their chains."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = tuple(sorted(items, key=lambda rule: rule.chain))
        self.ours = tuple(rule for rule in self.items if rule.is_ours)
        self.by_chain: dict[tuple[int, bytes, bytes], list[Item]] = {}
        for rule in self.items:
            self.by_chain.setdefault(rule.chain, []).append(rule)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All nftables objects of one namespace."""

    tables_and_chains: tuple[Item, ...] = ()
    rules: tuple[Item, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tables_and_chains)


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
        self._template_rules = Rules(())
        self._is_in = functools.lru_cache(maxsize=CACHED_DUMPS)(self._compare)

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
            with _netlink_socket() as sock:
                found = _read_rules(sock, _generation(sock))
            if not found.ours:
                return []
            return [*self.rules] if self._is_in(found) else None

        return _none_on_error(lambda: namespaces.run_in(namespace, read_ours)) if self._template() else None

    def _add(self) -> bool | None:
        if has_legacy_tables():
            return None
        with _netlink_socket() as sock:
            generation = _generation(sock)
            found = _read_rules(sock, generation)
            if found.ours:
                return False if self._is_in(found) else None
            existing = {item.name: item for item in _read_tables_and_chains(sock)}
            template = self._template()
            if existing:
                if any(existing.get(item.name, item) != item for item in template.tables_and_chains):
                    # A chain differs from the chain that iptables creates, for example by a policy.
                    return None
                missing = tuple(item for item in template.tables_and_chains if item.name not in existing)
                template = Ruleset(missing, template.rules)
            _send_batch(sock, _additions(template), generation)
        return True

    def _remove(self) -> bool | None:
        if has_legacy_tables():
            return None
        with _netlink_socket() as sock:
            generation = _generation(sock)
            found = _read_rules(sock, generation)
            if not found.ours:
                return False
            if not self._is_in(found):
                return None
            ruleset = Ruleset(_read_tables_and_chains(sock), found.items)
            is_copy = ruleset == self._template()
            _send_batch(sock, _deletions(ruleset) if is_copy else self._deletions_among_others(ruleset), generation)
        return True

    def _deletions_among_others(self, found: Ruleset) -> Operations:
        """Delete our rules, and the chains of the template that only our rules use."""
        uses = {item.name: item.use for item in found.tables_and_chains}
        return (
            *(
                (DELRULE, 0, rule.family, _copied(rule.attributes, RULE_TABLE, RULE_CHAIN) + rule.handle)
                for rule in found.rules
                if rule.is_ours
            ),
            *(
                (DELCHAIN, 0, item.family, _copied(item.attributes, CHAIN_TABLE, CHAIN_NAME))
                for item in self._template().tables_and_chains
                if item.kind == NEWCHAIN and not item.value(CHAIN_HOOK) and uses.get(item.name) == item.use
            ),
        )

    def _compare(self, found: Rules) -> bool:
        """Whether ``found`` has all our rules, at the head of their chains, and no other rules of ours."""
        wanted = self._template_rules
        heads = {chain: found.by_chain.get(chain, [])[: len(rules)] for chain, rules in wanted.by_chain.items()}
        return heads == wanted.by_chain and len(found.ours) == len(wanted.items)

    def _template(self) -> Ruleset:
        """The template. It is empty if rules cannot be copied on this host."""
        with self._lock:
            if self._made is None:
                made = _none_on_error(self._make_template) or Ruleset()
                self._template_rules = Rules(made.rules)
                self._made = made
        return self._made

    def _make_template(self) -> Ruleset | None:
        def create() -> Ruleset:
            self._add_rules()
            return read_ruleset()[0]

        def copy() -> Ruleset | None:
            add_ruleset(made, read_ruleset()[1])
            copied = read_ruleset()[0]
            return copied if copied == made and self._are_rules_there() else None

        made = namespaces.run_in_scratch(create)
        # The copy has the same handles as the copies in most routers, so its dump is already decoded.
        return namespaces.run_in_scratch(copy) if made else None


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
    facts = namespaces.facts()
    key = (HAS_LEGACY_TABLES, *families)
    # Only True is remembered: a table may be created at any time, also by iptables-legacy during this call.
    if not facts.get(key):
        facts[key] = any(
            _has_text(f'/proc/thread-self/net/{LEGACY_PREFIXES[family]}_tables_names') for family in families
        )
    return bool(facts[key])


def _has_text(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return bool(os.read(fd, 1))
    finally:
        os.close(fd)


def _has_nftables(family: int) -> bool:
    with _netlink_socket() as sock:
        return any(table.family == ADDRESS_FAMILIES[family] for table in _decode(_dump(sock, GETTABLE)))


def read_ruleset() -> tuple[Ruleset, int]:
    """The ruleset in the namespace of the calling thread, and the kernel's generation number. Raises OSError."""
    with _netlink_socket() as sock:
        generation = _generation(sock)
        return Ruleset(_read_tables_and_chains(sock), _read_rules(sock, generation).items), generation


def add_ruleset(wanted: Ruleset, generation: int) -> None:
    """Add ``wanted`` in one transaction, the rules at the head of their chains.

    Raises OSError if the kernel refuses, for example because something was changed since ``generation``.
    """
    with _netlink_socket() as sock:
        _send_batch(sock, _additions(wanted), generation)


def delete_tables(found: Ruleset, generation: int) -> None:
    """Delete the tables of ``found`` with their contents, in one transaction. Raises OSError like ``add_ruleset``."""
    with _netlink_socket() as sock:
        _send_batch(sock, _deletions(found), generation)


def _additions(wanted: Ruleset) -> Operations:
    # Each rule is inserted before the existing ones, so the last rule is sent first.
    items = (*wanted.tables_and_chains, *reversed(wanted.rules))
    return tuple((item.kind, NLM_F_CREATE, item.family, item.attributes) for item in items)


def _deletions(found: Ruleset) -> Operations:
    tables = [item for item in found.tables_and_chains if item.kind == NEWTABLE]
    return tuple((DELTABLE, 0, table.family, table.attributes) for table in tables)


def _read_tables_and_chains(sock: socket.socket) -> tuple[Item, ...]:
    tables = sorted(_decode(_dump(sock, GETTABLE)))
    return (*tables, *(sorted(_decode(_dump(sock, GETCHAIN))) if tables else ()))


def _read_rules(sock: socket.socket, generation: int) -> Rules:
    """The rules in the namespace of the calling thread. They are not read again if the generation is the same."""
    facts = namespaces.facts()
    last_generation, rules = facts.get(RULES, (None, None))
    if last_generation != generation:
        rules = _decode_rules(_dump(sock, GETRULE))
        facts[RULES] = generation, rules
    return rules


@contextmanager
def _netlink_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(NETLINK_TIMEOUT_S)
        yield sock


def _message(
    kind: int, flags: int, family: int, attributes: bytes = b'', sequence: int = 1, resource_id: int = 0
) -> bytes:
    header = struct.pack('=IHHII', 20 + len(attributes), kind, NLM_F_REQUEST | flags, sequence, 0)
    return header + struct.pack('>BBH', family, 0, resource_id) + attributes


def _generation(sock: socket.socket) -> int:
    sock.send(_message(NFNL_SUBSYS_NFTABLES << 8 | GETGEN, 0, 0))
    ((_, _, attributes),) = _messages(_receive(sock))
    return int.from_bytes(next(value for kind, value in _attributes(attributes) if kind == GEN_ID), 'big')


def _dump(sock: socket.socket, get: int) -> bytes:
    """The messages of all tables, chains or rules of all families. The packet counters of the rules are 0."""
    sock.send(_message(NFNL_SUBSYS_NFTABLES << 8 | get, NLM_F_DUMP, 0))
    parts = []
    is_last = False
    while not is_last:
        messages, is_last = _messages_of_dump(COUNTER.sub(COUNTER_OF_NO_PACKETS, _receive(sock)))
        if messages:
            parts.append(messages)
    return b''.join(parts)


@functools.lru_cache(maxsize=CACHED_DUMPS)
def _messages_of_dump(packet: bytes) -> tuple[bytes, bool]:
    """The messages of tables, chains or rules in a packet, and whether the dump ends in it. Raises OSError."""
    offset = 0
    while offset < len(packet):
        size, message_type, flags = struct.unpack_from('=IHH', packet, offset)
        if flags & NLM_F_DUMP_INTR:
            raise OSError(errno.EINTR, 'nftables: the rules were changed while they were read')
        if message_type == NLMSG_DONE:
            _raise_on_error(packet, offset)
            return packet[:offset], True
        offset += (size + 3) & ~3
    return packet, False


def _receive(sock: socket.socket) -> bytes:
    """One packet with messages. Raises OSError for an error message."""
    packet = sock.recv(RECEIVE_BYTES)
    if struct.unpack_from('=IH', packet)[1] == NLMSG_ERROR:
        _raise_on_error(packet, 0)
    return packet


def _raise_on_error(packet: bytes, offset: int) -> None:
    """Raise OSError if the message at ``offset``, NLMSG_ERROR or NLMSG_DONE, has an error number."""
    (code,) = struct.unpack_from('=i', packet, offset + 16)
    if code:
        raise OSError(-code, f'nftables: {errno.errorcode.get(-code, -code)}')


def _messages(packet: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(message type, family, attributes) of each message."""
    offset = 0
    while offset < len(packet):
        size, message_type = struct.unpack_from('=IH', packet, offset)
        yield message_type, packet[offset + 16], packet[offset + 20 : offset + size]
        offset += (size + 3) & ~3


@functools.lru_cache(maxsize=CACHED_DUMPS)
def _decode_rules(dump: bytes) -> Rules:
    return Rules(_decode(dump))


@functools.lru_cache(maxsize=CACHED_DUMPS)
def _decode(dump: bytes) -> tuple[Item, ...]:
    return tuple(_item(message_type & 0xFF, family, attributes) for message_type, family, attributes in _messages(dump))


def _item(kind: int, family: int, attributes: bytes) -> Item:
    values = dict(_attributes(attributes))
    return Item(
        kind,
        family,
        b''.join(_attribute(type_, values[type_]) for type_ in ATTRIBUTES_TO_COPY[kind] if type_ in values),
        handle=_attribute(RULE_HANDLE, values[RULE_HANDLE]) if kind == NEWRULE else b'',
        use=values.get(CHAIN_USE, b'') if kind == NEWCHAIN else b'',
    )


def _send_batch(sock: socket.socket, operations: Operations, generation: int) -> None:
    """Execute ``operations`` in one transaction. Raises OSError if the kernel refuses any."""
    generation_attribute = struct.pack('=HH', 8, GEN_ID) + struct.pack('>I', generation)
    begin = _message(NFNL_MSG_BATCH_BEGIN, 0, 0, generation_attribute, 0, NFNL_SUBSYS_NFTABLES)
    sock.send(begin + _batch_body(operations))
    _receive(sock)


@functools.lru_cache(maxsize=CACHED_DUMPS)
def _batch_body(operations: Operations) -> bytes:
    messages = []
    for sequence, (kind, flags, family, attributes) in enumerate(operations, 1):
        # The kernel acknowledges only the last message, when all are in force. Errors of the others arrive before.
        flags |= NLM_F_ACK if sequence == len(operations) else 0
        messages.append(_message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, family, attributes, sequence))
    messages.append(_message(NFNL_MSG_BATCH_END, 0, 0, b'', len(operations) + 1, NFNL_SUBSYS_NFTABLES))
    return b''.join(messages)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each netlink attribute."""
    offset = 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from('=HH', data, offset)
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def _copied(attributes: bytes, *kinds: int) -> bytes:
    """Some of the attributes."""
    return b''.join(_attribute(kind, value) for kind, value in _attributes(attributes) if kind in kinds)


def _none_on_error(function: Callable[[], T]) -> T | None:
    try:
        return function()
    except (NetnsError, OSError) as error:
        LOG.debug('Rules are not copied: %s', error)
        return None
