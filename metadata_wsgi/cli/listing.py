# SPDX-License-Identifier: Apache-2.0
"""The options ``-f FORMAT`` and ``-c COLUMN`` of verbs that print a list, as in the OpenStack client.

The format ``table`` is the default, for people. The other formats are for programs. Their columns and the column
order do not change within a major version. New columns are added at the end.

json, yaml   a list of objects, one for each row; a cell with several sentences is a list
csv          a header, then a line for each row
value        a line for each row without header, cells separated by a blank; ``None`` for an empty cell

cliff, the library of the OpenStack client, is not used. A verb must start within 150 ms, and the import of cliff's
listing takes 77 ms of CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from metadata_wsgi.cli.terminal import printable
from metadata_wsgi.errors import UsageError

TABLE = 'table'
FORMATS = (TABLE, 'json', 'yaml', 'value', 'csv')

Cell = str | int | float | bool | None | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows of cells. Each row has one cell for each column."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]

    def only(self, columns: Sequence[str]) -> Listing:
        """The listing with only these columns, in the order of ``self``. Without ``columns`` the whole listing."""
        if not columns:
            return self
        kept = [number for number, name in enumerate(self.columns) if name in columns]
        return Listing(
            tuple(self.columns[number] for number in kept),
            [tuple(row[number] for number in kept) for row in self.rows],
        )


def add_arguments(parser: argparse.ArgumentParser, columns: Sequence[str], *formats: str) -> None:
    """Declare ``-f`` and ``-c`` for a listing with these columns. ``formats`` are additional formats of the verb."""
    parser.add_argument(
        '-f',
        '--format',
        choices=(*FORMATS, *formats),
        default=TABLE,
        help='output format: table for people (default), the others for programs',
    )
    parser.add_argument(
        '-c',
        '--column',
        type=str.lower,
        choices=columns,
        action='append',
        default=[],
        metavar='COLUMN',
        help=f'show only this column; may be repeated: {", ".join(columns)}',
    )


def is_text(args: argparse.Namespace) -> bool:
    """Whether the verb prints its own text for people: the default format, with all columns."""
    return args.format == TABLE and not args.column


def write(args: argparse.Namespace, listing: Listing, stream: TextIO) -> None:
    """Write the listing in the format and with the columns of the command line.

    A verb may print different listings (``status``, ``status --failures``), and ``-c`` accepts the columns of all.
    Raises UsageError for a column that this listing does not have.
    """
    if unknown := set(args.column) - {*listing.columns}:
        raise UsageError(
            f'there is no column {", ".join(sorted(unknown))} here: choose of {", ".join(listing.columns)}'
        )
    listing = listing.only(args.column)
    {'json': _json, 'yaml': _yaml, 'csv': _csv, 'value': _value, TABLE: _table}[args.format](listing, stream)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with aligned columns: the header, then each row."""
    everything = [tuple(name.upper() for name in columns), *rows]
    widths = [max(map(len, column)) for column in zip(*everything, strict=True)]
    return [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in everything
    ]


def _table(listing: Listing, stream: TextIO) -> None:
    rows = [[printable(_text(cell) or '-') for cell in row] for row in listing.rows]
    stream.writelines(f'{line}\n' for line in table(listing.columns, rows))


def _objects(listing: Listing) -> list[dict[str, Any]]:
    return [
        {name: list(cell) if isinstance(cell, tuple) else cell for name, cell in zip(listing.columns, row, strict=True)}
        for row in listing.rows
    ]


def _json(listing: Listing, stream: TextIO) -> None:
    import json

    json.dump(_objects(listing), stream, indent=2)
    stream.write('\n')


def _yaml(listing: Listing, stream: TextIO) -> None:
    import yaml

    yaml.safe_dump(_objects(listing), stream, sort_keys=False)


def _csv(listing: Listing, stream: TextIO) -> None:
    import csv

    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator='\n')
    writer.writerow(listing.columns)
    for row in listing.rows:
        cells = [printable(_text(cell)) if isinstance(cell, tuple | str) else cell for cell in row]
        writer.writerow(['' if cell is None else cell for cell in cells])


def _value(listing: Listing, stream: TextIO) -> None:
    for row in listing.rows:
        stream.write(' '.join('None' if cell is None else printable(_text(cell)) for cell in row) + '\n')


def _text(cell: Cell) -> str:
    if cell is None:
        return ''
    return '; '.join(cell) if isinstance(cell, tuple) else str(cell)
