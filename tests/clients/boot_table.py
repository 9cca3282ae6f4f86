# SPDX-License-Identifier: Apache-2.0
"""A table for people: how the boots with each fault ended. pytest prints it at the end of the run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HEAD = ('datasource', 'service', 'fault', 'duration', 'requests', 'boots complete', 'slowest boot s', 'at')


@dataclass(frozen=True)
class Row:
    """One boot; ``request`` is the request into which the fault was injected."""

    datasource: str
    service: str
    fault: str
    duration: str
    request: str
    complete: bool
    seconds: float


class Table:
    """The rows in the order of the boots."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Append a row."""
        self._rows.append(row)

    def __str__(self) -> str:
        """The table as Markdown; '' if there are no rows."""
        groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in self._rows:
            groups[row.datasource, row.service, row.fault, row.duration].append(row)
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
    """Replace the table in ``file``; the text before it stays."""
    path = Path(file)
    text = path.read_text() if path.exists() else ''
    path.write_text(text.partition('|')[0] + table + '\n')
