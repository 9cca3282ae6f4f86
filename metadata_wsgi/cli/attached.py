# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi attached``: the routers and networks that are attached on this host, and their problems.

Needs root. The exit code is 1 if a target has a problem, so a monitoring system can run the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from metadata_wsgi.cli import attach_command, listing, root_check, verbs
from metadata_wsgi.cli.exit_codes import NOT_WELL, WELL
from metadata_wsgi.cli.terminal import RED, paint
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import attachment_status

COLUMNS = ('kind', 'id', 'namespace', 'mode', 'pid', 'port', 'rules', 'problems', 'notes')


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb. ``args.run(args)`` runs it and returns its exit code."""
    parser = verbs.add_parser(
        subparsers,
        'attached',
        description='Shows the present state of every router and network of this host that has a namespace proxy, a '
        'socket in the keeper or rules of this package. A line with ! is a problem and says how to repair it; then the '
        'exit code is 1. A line with - is a note: no repair is needed. Needs root.',
    )
    attach_command.add_common_options(parser)
    listing.add_arguments(parser, COLUMNS)
    parser.set_defaults(run=_attached)


def _attached(args: argparse.Namespace) -> int:
    root_check.require_root()
    found, keeper_error = statuses(args)
    if listing.is_text(args):
        print(table(found), end='')
    else:
        listing.write(args, to_listing(found), sys.stdout)
    return NOT_WELL if keeper_error or any(status.problems for status in found) else WELL


def statuses(args: argparse.Namespace) -> tuple[list[attachment_status.AttachmentStatus], str]:
    """The status of each attached target, and an error message if the keeper does not respond, else ''.

    The error message is also printed.
    """
    path = attach_command.state_path(args)
    entries, keeper_error = None, ''
    try:
        entries = AttachmentsClient(path).entries()
    except MetadataError as error:
        keeper_error = str(error)
        print(f'{verbs.PROGRAM}: {keeper_error}', file=sys.stderr)
    iptables = attach_command.iptables(args.iptables)
    found = attachment_status.list_attachments(iptables, state_path=path, keeper_entries=entries)
    return found, keeper_error


def to_listing(statuses: Iterable[attachment_status.AttachmentStatus]) -> listing.Listing:
    """The statuses as rows."""
    rows: list[tuple[listing.Cell, ...]] = [
        (one.kind, one.uuid, one.namespace, one.mode, one.pid, one.port, one.rules, one.problems, one.notes)
        for one in statuses
    ]
    return listing.Listing(COLUMNS, rows)


def table(statuses: list[attachment_status.AttachmentStatus]) -> str:
    """The statuses as a text table. Below each row are its problems (!) and notes (-)."""
    rows = [
        (one.kind, one.uuid, one.namespace or '-', one.mode, str(one.pid or '-'), str(one.port), one.rules)
        for one in statuses
    ]
    header, *lines = listing.table(COLUMNS[:7], rows)
    text = header + '\n'
    for line, status in zip(lines, statuses, strict=True):
        text += line + '\n'
        text += ''.join(paint(f'    ! {problem}', RED, sys.stdout) + '\n' for problem in status.problems)
        text += ''.join(f'    - {note}\n' for note in status.notes)
    return text
