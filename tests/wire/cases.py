# SPDX-License-Identifier: Apache-2.0
r"""The files ``valid/*.http`` and ``invalid/*.http``: one request that somebody may try, and what must come of it.

Lines that begin with ``#`` say what it is about, and what is expected (both defaults are the directory's)::

    # expect: 200            the status of the first answer; "refused" is 400, 413, 414, 431 or a closed connection
    # nova: 1                how many requests may reach Nova, at most
    # agent: 400             the same for one hop only: proxy, agent or one_hop

All other lines are joined without their ends and are the bytes: ``\r \n \t \0 \\ \xNN`` are what they are in
Python, ``{A*9000}`` repeats. ``{who}`` becomes, at the agent, the headers that a namespace proxy sets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
HOPS = ('proxy', 'agent', 'one_hop')
WHO = 'X-Forwarded-For: 127.0.0.1\r\nX-Quantum-Router-ID: router-a\r\n'
REFUSED = 'refused'
REFUSALS = (400, 413, 414, 431)

_REPEATED = re.compile(r'\{(.+?)\*(\d+)\}', re.DOTALL)


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    text: str
    expect: str
    nova: int
    at: dict[str, str] = field(default_factory=dict)

    def data(self, hop: str) -> bytes:
        """The bytes to send at ``hop``."""
        text = self.text.replace('{who}', WHO if hop == 'agent' else '')
        return _REPEATED.sub(lambda found: found[1] * int(found[2]), text).encode('latin-1')

    def expected(self, hop: str) -> tuple[str, int]:
        """Status (or "refused"), and how many requests may reach Nova."""
        expect = self.at.get(hop, self.expect)
        return expect, self.nova if expect == '200' else 0


def read(path: Path) -> Case:
    """One file as a case."""
    lines = path.read_text('ascii').splitlines()
    options = dict(found.groups() for line in lines if (found := re.match(r'# (\w+): (\w+)$', line)))
    text = ''.join(line for line in lines if not line.startswith('#')).encode('ascii').decode('unicode_escape')
    valid = path.parent.name == 'valid'
    expect = options.pop('expect', '200' if valid else REFUSED)
    nova = int(options.pop('nova', 1 if valid else 0))
    assert set(options) <= set(HOPS), (path, options)
    return Case(f'{path.parent.name}/{path.stem}', text, expect, nova, options)


def cases() -> list[Case]:
    """All of them."""
    return [read(path) for path in sorted(HERE.glob('*valid/*.http'))]
