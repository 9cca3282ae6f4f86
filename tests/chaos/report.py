# SPDX-License-Identifier: Apache-2.0
"""The rows of a run as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.experiment import Row
from tests.chaos.load import RETRY_AFTER

HEAD = ('Setup', 'Fault', 'Lasts s', 'Requests', 'Failed', '503, Retry-After', 'Longest wait s', 'Recovered after s')


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [HEAD, tuple('---' for _ in HEAD), *(_cells(row) for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
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


def write(file: Path, text: str) -> None:
    """Replace the table in ``file``; the text before it stays."""
    former = file.read_text() if file.exists() else ''
    file.write_text(former.partition('| Setup |')[0] + text + '\n')
