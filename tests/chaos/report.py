# SPDX-License-Identifier: Apache-2.0
"""The rows of a run as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.chaos.experiment import Row
from tests.chaos.faults import FAULTS
from tests.chaos.load import RETRY_AFTER
from tests.chaos.setups import PEER, SETUPS

HEAD = ('Setup', 'Fault', 'Lasts s', 'Requests', 'Failed', '503, Retry-After', 'Longest wait s', 'Recovered after s')
KEY = 3
"""Cells that identify a row."""
ORDER_OF_SETUPS = (*SETUPS, PEER)
ORDER_OF_FAULTS = tuple(dict.fromkeys(fault.name for fault in FAULTS))

Cells = tuple[str, ...]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    return _markdown([_cells(row) for row in rows])


def place(row: Row) -> tuple[int, float, int]:
    """Where a row has its place in the table: by setup, duration, fault."""
    return _place(_cells(row))


def write(file: Path, rows: Sequence[Row]) -> None:
    """Replace these rows in the table at the end of ``file``. The other rows and the text before them stay."""
    text, _, former = (file.read_text() if file.exists() else '').partition('| Setup |')
    lines = (tuple(line.strip('| ').split(' | ')) for line in former.splitlines()[2:] if line.startswith('|'))
    measured = {cells[:KEY]: cells for cells in (*lines, *map(_cells, rows))}
    file.write_text(f'{text}{_markdown(sorted(measured.values(), key=_place))}\n')


def _markdown(rows: Iterable[Cells]) -> str:
    lines = [HEAD, tuple('---' for _ in HEAD), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _place(cells: Cells) -> tuple[int, float, int]:
    setup, fault, for_s = cells[:KEY]
    return ORDER_OF_SETUPS.index(setup), float(for_s), ORDER_OF_FAULTS.index(fault)


def _cells(row: Row) -> Cells:
    failed = {outcome: count for outcome, count in row.outcomes.items() if outcome != RETRY_AFTER}
    recovered = 'never' if row.recovery_s is None else f'{row.recovery_s:.1f}'
    return (
        row.setup, row.fault, f'{row.for_s:g}', str(row.requests), _failures(failed),
        str(row.outcomes.get(RETRY_AFTER, 0)), f'{row.longest_s:.1f}', recovered,
    )  # fmt: skip


def _failures(failed: Mapping[str, int]) -> str:
    if not failed:
        return '0'
    return f'{sum(failed.values())} ({", ".join(f"{outcome}: {count}" for outcome, count in failed.items())})'
