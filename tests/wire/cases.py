# SPDX-License-Identifier: Apache-2.0
r"""The files ``valid/*.http`` and ``invalid/*.http``: one hostile or unusual request each, and the expected response.

Lines that begin with ``#`` describe the request and the expected result (the defaults depend on the directory)::

    # expect: 200            status of the first response; "refused": 400, 413, 414, 431, 501 or a closed connection
    # nova: 1                how many requests may reach Nova, at most
    # agent: 400             the same for one server only: proxy, agent or one_hop

All other lines are joined without their ends and are the bytes: ``\r \n \t \0 \\ \xNN`` are what they are in
Python, ``{A*9000}`` repeats. ``{proxy_headers}`` becomes, at the agent, the headers that a namespace proxy sets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SERVERS = ('proxy', 'agent', 'one_hop')
PROXY_HEADERS = 'X-Forwarded-For: 127.0.0.1\r\nX-Quantum-Router-ID: router-a\r\n'
REFUSED = 'refused'
REFUSED_STATUSES = (400, 413, 414, 431, 501)

_REPEATED = re.compile(r'\{(.+?)\*(\d+)\}', re.DOTALL)


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    text: str
    expect: str
    nova: int
    by_server: dict[str, str] = field(default_factory=dict)

    def data(self, server: str) -> bytes:
        """The bytes to send at ``hop``."""
        text = self.text.replace('{proxy_headers}', PROXY_HEADERS if server == 'agent' else '')
        return _REPEATED.sub(lambda found: found[1] * int(found[2]), text).encode('latin-1')

    def expected(self, server: str) -> tuple[str, int]:
        """Expected status (or "refused"), and the number of requests that Nova may receive."""
        expect = self.by_server.get(server, self.expect)
        return expect, self.nova if expect == '200' else 0


def read(path: Path) -> Case:
    """Read one file."""
    lines = path.read_text('ascii').splitlines()
    options = dict(found.groups() for line in lines if (found := re.match(r'# (\w+): (\w+)$', line)))
    text = ''.join(line for line in lines if not line.startswith('#')).encode('ascii').decode('unicode_escape')
    valid = path.parent.name == 'valid'
    expect = options.pop('expect', '200' if valid else REFUSED)
    nova = int(options.pop('nova', 1 if valid else 0))
    assert set(options) <= set(SERVERS), (path, options)
    return Case(f'{path.parent.name}/{path.stem}', text, expect, nova, options)


def cases() -> list[Case]:
    """All files."""
    return [read(path) for path in sorted(HERE.glob('*valid/*.http'))]
