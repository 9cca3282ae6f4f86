# SPDX-License-Identifier: Apache-2.0
"""The recent failures of one worker, in bounded memory.

The table has one row for each client, status and reason, with the number of failures and the last path. A client
address has at most ``limits.FAILURES_PER_ADDRESS`` rows, a router or network at most ``FAILURES_PER_NAMESPACE``. So a
client cannot displace the rows of another router. If more than ``FAILURE_NAMESPACES`` routers and networks have rows,
the rows of the router or network whose last failure is oldest are deleted.

No query, header or body is kept. Characters that are not printable ASCII are replaced, and long texts are cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote

from metadata_wsgi import limits

MAX_TEXT = {'kind': 8, 'namespace_id': 64, 'address': 64, 'instance_id': 64, 'path': 120, 'reason': 300}
"""Largest length of each text. A longer text is cut."""
MAX_TIME_S = 253_402_300_800
"""The start of the year 10000. A later time cannot be written as a date."""
SAFE_IN_PATH = "/:@!$&'()*+,;=~-._"


@dataclass(slots=True)
class Row:
    """A failure: its client, the response and the reason. Times are in seconds since 1970.

    ``kind`` is ``router`` or ``network``, '' if the namespace is unknown. ``instance_id`` is '' if the request failed
    before its instance was known.
    """

    first_at_s: float
    last_at_s: float
    count: int
    kind: str
    namespace_id: str
    address: str
    instance_id: str
    status: int
    path: str
    reason: str

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """Failures with the same key are counted in one row."""
        return self.kind, self.namespace_id, self.address, self.status, self.reason


class FailureTable:
    """The table. It needs no lock: only greenlets of one worker use it, and no method yields to another greenlet."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # The rows of each namespace. Namespaces, and the rows of each, are ordered by last failure, the oldest first.
        self._rows: dict[tuple[str, str], dict[tuple[Any, ...], Row]] = {}
        self.has_changed = False

    def add(
        self,
        *,
        status: int,
        reason: str,
        path: str = '',
        kind: str = '',
        namespace_id: str = '',
        address: str = '',
        instance_id: str = '',
    ) -> None:
        """Count one failure."""
        now_s = self._clock()
        row = Row(
            first_at_s=now_s,
            last_at_s=now_s,
            count=1,
            kind=kind,
            namespace_id=_clean('namespace_id', namespace_id),
            address=_clean('address', address),
            instance_id=_clean('instance_id', instance_id),
            status=status,
            path=quote(path.encode('latin-1', 'replace')[: MAX_TEXT['path']], safe=SAFE_IN_PATH)[: MAX_TEXT['path']],
            reason=_clean('reason', reason),
        )
        self.has_changed = True
        namespace = kind, row.namespace_id
        rows = self._rows.pop(namespace, {})
        self._rows[namespace] = rows
        known = rows.pop(row.key, None)
        if known is not None:
            row.first_at_s, row.count = known.first_at_s, known.count + 1
        rows[row.key] = row
        _drop_oldest(rows, lambda one: one.address == row.address, limits.FAILURES_PER_ADDRESS)
        _drop_oldest(rows, lambda one: True, limits.FAILURES_PER_NAMESPACE)
        while len(self._rows) > limits.FAILURE_NAMESPACES:
            del self._rows[next(iter(self._rows))]

    def rows(self) -> list[Row]:
        """All rows, the last failure first."""
        return sorted((row for rows in self._rows.values() for row in rows.values()), key=lambda row: -row.last_at_s)


def merge(tables: Iterable[Sequence[Row]]) -> list[Row]:
    """The rows of several workers as one table, the last failure first."""
    merged: dict[tuple[Any, ...], Row] = {}
    for row in (row for rows in tables for row in rows):
        known = merged.get(row.key)
        if known is None:
            merged[row.key] = row
            continue
        newer = max(known, row, key=lambda one: one.last_at_s)
        newer.first_at_s, newer.count = min(known.first_at_s, row.first_at_s), known.count + row.count
        merged[row.key] = newer
    return sorted(merged.values(), key=lambda row: -row.last_at_s)


def to_objects(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as objects for JSON."""
    return [asdict(row) for row in rows]


def from_objects(objects: object) -> list[Row]:
    """The rows in ``objects``, which a worker has written. Workers are not trusted, so invalid rows are left out."""
    if not isinstance(objects, list):
        return []
    bound = limits.FAILURE_NAMESPACES * limits.FAILURES_PER_NAMESPACE
    return [row for row in map(_row, objects[:bound]) if row is not None]


def _row(values: object) -> Row | None:
    if not isinstance(values, Mapping) or set(values) != {field.name for field in fields(Row)}:
        return None
    for name, value in values.items():
        if name in MAX_TEXT:
            if not isinstance(value, str) or len(value) > MAX_TEXT[name] or value != _clean(name, value):
                return None
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_TIME_S:
            return None
    if not isinstance(values['count'], int) or not isinstance(values['status'], int):
        return None
    return Row(**values)


def _clean(name: str, text: str) -> str:
    """``text``, cut to its length in MAX_TEXT, with ``?`` in place of each character that is not printable ASCII."""
    return ''.join(letter if ' ' <= letter <= '~' else '?' for letter in text[: MAX_TEXT[name]])


def _drop_oldest(rows: dict[tuple[Any, ...], Row], counts: Callable[[Row], bool], limit: int) -> None:
    keys = [key for key, row in rows.items() if counts(row)]
    for key in keys[: max(0, len(keys) - limit)]:
        del rows[key]
