# SPDX-License-Identifier: Apache-2.0
"""The results of ``status`` and ``check-config``: one finding for each part that they check."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from metadata_wsgi.cli import exit_codes
from metadata_wsgi.cli.listing import Cell, Listing
from metadata_wsgi.cli.terminal import GREEN, RED, YELLOW, paint

WELL, NOT_WELL, UNKNOWN = 'well', 'not well', 'unknown'

COLUMNS = ('part', 'state', 'text', 'details')
EXIT_CODES = {WELL: exit_codes.WELL, NOT_WELL: exit_codes.NOT_WELL, UNKNOWN: exit_codes.CANNOT_TELL}
COLOURS = {WELL: GREEN, NOT_WELL: RED, UNKNOWN: YELLOW}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one checked part, for example ``keeper``. ``state`` is WELL, NOT_WELL or UNKNOWN.

    ``text`` is a sentence. ``details`` are lines below it.
    """

    part: str
    state: str
    text: str
    details: tuple[str, ...] = ()


def show(finding: Finding, width: int) -> None:
    """Print the part in a column of ``width`` characters, then its sentence, and its details below."""
    print(f'{paint(finding.part.ljust(width), COLOURS[finding.state], sys.stdout)}{finding.text}')
    for line in finding.details:
        print(line)


def to_listing(findings: Iterable[Finding]) -> Listing:
    """The findings as rows."""
    rows: list[tuple[Cell, ...]] = [(one.part, one.state, one.text, one.details) for one in findings]
    return Listing(COLUMNS, rows)


def exit_code(findings: Iterable[Finding]) -> int:
    """The exit code of all findings together."""
    return exit_codes.worst(EXIT_CODES[one.state] for one in findings)
