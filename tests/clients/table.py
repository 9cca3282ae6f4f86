# SPDX-License-Identifier: Apache-2.0
"""What the boots came to, a row for each fault: for people, at the end of the run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HEAD = ('datasource', 'service', 'fault', 'lasting', 'requests', 'boots complete', 'slowest boot s', 'at')


@dataclass(frozen=True)
class Row:
    """One boot: ``request`` is where the fault met it."""

    datasource: str
    service: str
    fault: str
    lasting: str
    request: str
    complete: bool
    seconds: float


class Table:
    """Rows, in the order of the boots."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Another boot."""
        self._rows.append(row)

    def __str__(self) -> str:
        """Markdown; '' without boots."""
        groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in self._rows:
            groups[row.datasource, row.service, row.fault, row.lasting].append(row)
        if not groups:
            return ''
        lines = [HEAD, tuple('---' for _ in HEAD)]
        for key, rows in groups.items():
            slowest = max(rows, key=lambda row: row.seconds)
            complete = f'{sum(row.complete for row in rows)} of {len(rows)}'
            requests = str(len({row.request for row in rows}))
            lines.append((*key, requests, complete, f'{slowest.seconds:.1f}', slowest.request))
        return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write(file: str, table: str) -> None:
    """Put a table into a file in the place of the one that is there; the text before that stays."""
    path = Path(file)
    text = path.read_text() if path.exists() else ''
    path.write_text(text.partition('|')[0] + table + '\n')
