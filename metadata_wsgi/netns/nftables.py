# SPDX-License-Identifier: Apache-2.0
"""All nftables rules of a namespace, read, written and removed without running a program.

Opaque: what the kernel tells of a table, a chain or a rule is what it takes to make it anew, so nothing here knows
what a rule says. For the namespace of the thread that calls (``netns.run_in``).

Facts:

- Numbers (handles), uses and counts differ between two that are otherwise equal; they are left out.
- The kernel does not tell for which protocol an extension was asked (NFTA_RULE_COMPAT). An iptables that says ports
  through an extension, which needs one, makes rules that cannot be written: ``write`` is refused.
- A batch is one transaction. With the generation beside it the kernel refuses it if anybody wrote since.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
NETLINK_NETFILTER = 12
NFT = 10
ERROR, DONE, BATCH_BEGIN, BATCH_END = 2, 3, 16, 17
NEW_TABLE, GET_TABLE, DELETE_TABLE = 0, 1, 2
NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = 3, 4, 5
NEW_RULE, GET_RULE, DELETE_RULE = 6, 7, 8
GET_GENERATION = 16
REQUEST, ACK, DUMP, CREATE = 0x1, 0x4, 0x300, 0x400
TYPE = 0x3FFF
TABLE_NAME = 1
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK = 1, 3, 4
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, EXPRESSIONS = 1, 2, 3, 4
KEPT = {
    NEW_TABLE: (TABLE_NAME, 2),  # flags
    NEW_CHAIN: (CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, 5, 7),  # policy, type
    NEW_RULE: (RULE_TABLE, RULE_CHAIN, EXPRESSIONS, 7),  # userdata
}
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
PATIENCE_S = 10.0

Part = tuple[int, int, bytes]
"""(kind, family, attributes) of a table, a chain or a rule."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Tables, chains and rules; rules by chain and in their order there."""

    parts: tuple[Part, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    def frame(self) -> dict[tuple[int, int, bytes, bytes], Part]:
        """Tables and chains, by what names each of them."""
        return {_name(part): part for part in self.parts if part[0] != NEW_RULE}

    def rules(self) -> dict[tuple[int, bytes, bytes], list[Part]]:
        """The rules of each chain, in their order."""
        chains: dict[tuple[int, bytes, bytes], list[Part]] = {}
        for part in self.parts:
            if part[0] == NEW_RULE:
                chains.setdefault(_where(part), []).append(part)
        return chains


def read() -> tuple[Ruleset, int]:
    """What there is, and the kernel's generation of it. OSError where it cannot be read."""
    with _opened() as sock:
        generation = _generation(sock)
        tables, chains = (sorted(_dump(sock, what)) for what in (GET_TABLE, GET_CHAIN))
        # Nothing to ask where nothing is: a new router.
        rules = sorted(_dump(sock, GET_RULE), key=_where) if chains else []
    return Ruleset((*tables, *chains, *rules)), generation


def write(wanted: Ruleset, generation: int) -> None:
    """Add all of it at once, its rules at the head of their chains.

    OSError where the kernel refuses, also because anybody wrote since ``generation``.
    """
    frame = [part for part in wanted.parts if part[0] != NEW_RULE]
    rules = [part for part in wanted.parts if part[0] == NEW_RULE]
    # Each goes before what is there.
    _batch([(kind, CREATE, family, said) for kind, family, said in (*frame, *reversed(rules))], generation)


def remove(there: Ruleset, generation: int) -> None:
    """Remove the tables of ``there`` with all that is in them, at once. OSError as for ``write``."""
    tables = [(family, said) for kind, family, said in there.parts if kind == NEW_TABLE]
    _batch([(DELETE_TABLE, 0, family, said) for family, said in tables], generation)


def take_out(drop: Callable[[bytes], bool], chains: Iterable[Part], generation: int) -> None:
    """Remove the rules that ``drop`` says of their attributes, and of ``chains`` those that nobody needs then, at once.

    OSError as for ``write``.
    """
    with _opened() as sock:
        rules = [(family, said) for _, family, said in _dump(sock, GET_RULE, more=(RULE_HANDLE,))]
    staying = [(family, said) for family, said in rules if not drop(said)]
    deletions = []
    for family, said in rules:
        if drop(said):
            found = dict(_attributes(said))
            which = (RULE_TABLE, RULE_CHAIN, RULE_HANDLE)
            deletions.append((DELETE_RULE, 0, family, b''.join(_attribute(key, found[key]) for key in which)))
    for _, family, said in chains:
        found = dict(_attributes(said))
        # In its own rules, or in one that jumps to it; one that only sounds like it keeps it too.
        if not any(family == other and found[CHAIN_NAME].rstrip(b'\0') in rule for other, rule in staying):
            name = _attribute(CHAIN_TABLE, found[CHAIN_TABLE]) + _attribute(CHAIN_NAME, found[CHAIN_NAME])
            deletions.append((DELETE_CHAIN, 0, family, name))
    _batch(deletions, generation)


def is_builtin(chain: Part) -> bool:
    """Whether packets come to it by themselves."""
    return CHAIN_HOOK in dict(_attributes(chain[2]))


def _opened() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.settimeout(PATIENCE_S)
    return sock


def _packet(kind: int, flags: int, family: int, attributes: bytes = b'', number: int = 1, resource: int = 0) -> bytes:
    head = struct.pack('=IHHII', 20 + len(attributes), kind, REQUEST | flags, number, 0)
    return head + struct.pack('>BBH', family, 0, resource) + attributes


def _generation(sock: socket.socket) -> int:
    sock.send(_packet(NFT << 8 | GET_GENERATION, 0, 0))
    found = dict(_attributes(next(_answers(sock))[2]))
    return int.from_bytes(found[1], 'big')


def _dump(sock: socket.socket, what: int, more: tuple[int, ...] = ()) -> list[Part]:
    sock.send(_packet(NFT << 8 | what, DUMP, 0))
    found = []
    for kind, family, attributes in _answers(sock):
        if kind == DONE:
            break
        found.append((kind & 0xFF, family, _essence(kind & 0xFF, attributes, more)))
    return found


def _batch(parts: list[tuple[int, int, int, bytes]], generation: int) -> None:
    beside = struct.pack('=HH', 8, 1) + struct.pack('>I', generation)
    packets = [_packet(BATCH_BEGIN, 0, 0, beside, number=0, resource=NFT)]
    for number, (kind, flags, family, attributes) in enumerate(parts, 1):
        # The last one is answered when all are in force; before it only what is refused.
        flags |= ACK if number == len(parts) else 0
        packets.append(_packet(NFT << 8 | kind, flags, family, attributes, number))
    packets.append(_packet(BATCH_END, 0, 0, number=len(parts) + 1, resource=NFT))
    with _opened() as sock:
        sock.send(b''.join(packets))
        next(_answers(sock))


def _answers(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """(kind, family, attributes) of each message; OSError for a refusal."""
    while True:
        packet = sock.recv(1 << 17)
        at = 0
        while at < len(packet):
            size, kind = struct.unpack_from('=IH', packet, at)
            if kind == ERROR:
                (number,) = struct.unpack_from('=i', packet, at + 16)
                if number:
                    raise OSError(-number, f'nftables: {errno.errorcode.get(-number, -number)}')
            yield kind, packet[at + 16], packet[at + 20 : at + size]
            at += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from('=HH', data, at)
        yield kind & TYPE, data[at + 4 : at + size]
        at += (size + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack('=HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _essence(kind: int, attributes: bytes, more: tuple[int, ...]) -> bytes:
    found = dict(_attributes(attributes))
    if kind == NEW_RULE and EXPRESSIONS in found:
        found[EXPRESSIONS] = b''.join(_attribute(1, _uncounted(one)) for _, one in _attributes(found[EXPRESSIONS]))
    return b''.join(_attribute(which, found[which]) for which in (*KEPT[kind], *more) if which in found)


def _uncounted(expression: bytes) -> bytes:
    name = dict(_attributes(expression)).get(EXPRESSION_NAME)
    if name != b'counter\0':
        return expression
    return _attribute(EXPRESSION_NAME, name) + _attribute(EXPRESSION_DATA, b'')


def _where(rule: Part) -> tuple[int, bytes, bytes]:
    found = dict(_attributes(rule[2]))
    return rule[1], found[1], found[2]


def _name(part: Part) -> tuple[int, int, bytes, bytes]:
    kind, family, said = part
    found = dict(_attributes(said))
    return kind, family, found[TABLE_NAME], found[CHAIN_NAME] if kind == NEW_CHAIN else b''
