# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi status``: are agent and keeper there, do they work, what is attached, and what went wrong last.

Asked of what is there (the sockets, the kernel, the log), not of a record. Ends with 1 when something is wrong, so
that a monitor may call it.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from oslo_config import cfg
from oslo_log import log

from metadata_wsgi.cli import attach
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.filters.optional import healthcheck
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import attachment_status, proxy_process
from metadata_wsgi.netns.target import MODES, NOBODY_SERVES, ONE_HOP, SHARED, Kept

FAULTS = (' WARNING ', ' ERROR ', ' CRITICAL ')
SHOWN = 5
TAIL = 1 << 18
ANSWER_S = 5.0


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser('status', help='say whether the agent is there and works, and what is attached')
    parser.add_argument('--config-file', action='append', default=[], help="the agent's files, may be repeated")
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a paragraph for each; 1 when something is wrong."""
    conf = cfg.ConfigOpts()
    conf.register_opts(state_paths.OPTS)
    log.register_options(conf)
    config_files.parse(conf, config_files.files({'config_file': ','.join(args.config_file)}))
    if args.state_path:
        conf.set_override('state_path', os.path.abspath(args.state_path))
    well = agent(conf.metadata_proxy_socket)
    if os.geteuid() != 0:
        print('attached    only root can see it')
    else:
        kept, keeper_is_well = keeper(conf.state_path, AttachmentsClient(conf.state_path))
        well &= keeper_is_well & attachments(conf.state_path, kept)
    if conf.log_file:
        faults(os.path.join(conf.log_dir or '', conf.log_file))
    else:
        print('faults      the agent logs to standard error: ask journalctl, or whoever started it')
    return 0 if well else 1


def agent(path: str) -> bool:
    """Say who serves the socket at ``path``, and what its healthcheck answers; whether all is well."""
    try:
        pid = proxy_process.serving(path)
    except OSError as error:
        print(f'agent       nobody answers at {path} ({error.strerror}): start quantum-metadata-agent')
        return False
    workers = _children(pid)
    print(f'agent       pid {pid} serves {path}; {len(workers)} workers: {", ".join(map(str, workers))}')
    try:
        status, text = _ask(path, healthcheck.PATH)
    except (OSError, http.client.HTTPException) as error:
        print(f'health      no answer: {str(error) or type(error).__name__}')
        return False
    if status not in (200, 503):
        # 400: the pipeline wants to know who asks, as it does of guests.
        print('health      the filter healthcheck is not in its pipeline; it answers')
        return status == 400
    print('health      ' + '; '.join(text.splitlines()))
    return status == 200


class Keeping(Protocol):
    """The keeper; :class:`metadata_wsgi.keeper.attachments_client.AttachmentsClient`. Raises NetnsError."""

    def kept(self) -> list[Kept]:
        """All that is kept."""

    def workers(self) -> dict[str, int]:
        """How many workers follow, by mode."""


def keeper(state_path: str, keeping: Keeping) -> tuple[list[Kept] | None, bool]:
    """Say whether the keeper is there and who serves what it keeps; what it keeps, None if it is away, and whether
    all is well."""
    path = admin_client.socket_path(state_path)
    if not os.path.exists(path):
        print('keeper      there is none; only the modes shared and one_hop need it')
        return [], True
    try:
        kept, workers = keeping.kept(), keeping.workers()
        pid = proxy_process.serving(path, socket.SOCK_SEQPACKET)
    except (MetadataError, OSError) as error:
        print(f'keeper      {error}; whoever serves its sockets goes on, and nothing can be attached')
        return None, False
    follow = ', '.join(f'{workers.get(mode, 0)} in mode {mode}' for mode in (SHARED, ONE_HOP))
    print(f'keeper      pid {pid} keeps the sockets of {len(kept)} routers and networks; workers: {follow}')
    unserved = sorted({one.mode for one in kept if not workers.get(one.mode)})
    for mode in unserved:
        print(f'    ! {NOBODY_SERVES[mode]}')
    return kept, not unserved


def attachments(state_path: str, kept: list[Kept] | None) -> bool:
    """Say what is attached; whether all of it is well. ``kept`` None: the keeper is away."""
    try:
        found = attachment_status.attached(attach.iptables(), state_path=state_path, kept=kept)
    except MetadataError as error:
        print(f'attached    {error}')
        return False
    # That nobody serves a mode was said of the keeper, once.
    found = [replace(one, problems=tuple(sorted({*one.problems} - {*NOBODY_SERVES.values()}))) for one in found]
    wrong = [one for one in found if one.problems]
    modes = Counter(one.mode for one in found)
    by_mode = ', '.join(f'{modes[mode]} in mode {mode}' for mode in (*MODES, attachment_status.UNKNOWN) if modes[mode])
    print(
        f'attached    {len(found)} routers and networks, {len(wrong)} of them only half' + (by_mode and f': {by_mode}')
    )
    if wrong:
        print(attach.table(wrong), end='')
    return not wrong


def faults(path: str) -> None:
    """Print the last lines of the log that are warnings or worse."""
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().decode(errors='replace').splitlines()
    except OSError as error:
        print(f'faults      {path}: {error.strerror}')
        return
    found = [line for line in lines if any(level in line for level in FAULTS)][-SHOWN:]
    print(f'faults      {path}: {"the last ones" if found else "none lately"}')
    for line in found:
        print('            ' + ''.join(letter if letter.isprintable() else '?' for letter in line))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f'/proc/{pid}/task/{pid}/children').read_text(encoding='ascii').split()]
    except OSError:
        return []


def _ask(path: str, target: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection('agent', timeout=ANSWER_S)
    with socket.socket(socket.AF_UNIX) as plugged:
        plugged.settimeout(ANSWER_S)
        plugged.connect(path)
        connection.sock = plugged
        connection.request('GET', target)
        response = connection.getresponse()
        return response.status, response.read().decode(errors='replace')
