# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi status --failures``: recent failures of all workers on this host, a row for each client and reason.

The workers store the failures in memory (``metadata_wsgi.failures``). The failures survive a reload of the
agent, but not a restart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from metadata_wsgi.cli import listing
from metadata_wsgi.cli.exit_codes import CANNOT_TELL, WELL
from metadata_wsgi.failures import shared_memory, table

COLUMNS = ('last', 'count', 'kind', 'id', 'address', 'instance', 'status', 'path', 'reason', 'first')
NO_WORKER = 'no worker publishes failures: the agent does not run, or it is not yours; run it as root'


def show(args: argparse.Namespace) -> int:
    """Print the failures. Returns WELL if they could be read, even if there are some; else CANNOT_TELL."""
    tables = shared_memory.read_all()
    if not tables:
        print(NO_WORKER, file=sys.stderr)
        return CANNOT_TELL
    rows = to_listing(table.merge(tables))
    if listing.is_text(args) and not rows.rows:
        print('no request has failed since the workers were started')
    else:
        listing.write(args, rows, sys.stdout)
    return WELL


def to_listing(rows: Iterable[table.Row]) -> listing.Listing:
    """The rows with times as text (UTC). A cell is None if its value is unknown."""
    cells: list[tuple[listing.Cell, ...]] = [
        (
            _time(row.last_at_s), row.count, row.kind or None, row.namespace_id or None, row.address or None,
            row.instance_id or None, row.status, row.path or None, row.reason, _time(row.first_at_s),
        )
        for row in rows
    ]  # fmt: skip
    return listing.Listing(COLUMNS, cells)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime('%Y-%m-%dT%H:%M:%SZ')
