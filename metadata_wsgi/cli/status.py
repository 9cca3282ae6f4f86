# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi status``: shows whether agent and keeper run, what is attached, and the last faults in the log.

The data come from the sockets, the kernel and the log. The exit code is 1 if something is wrong, so a monitoring system
can run the command.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path

from oslo_config import cfg
from oslo_log import log

from metadata_wsgi.cli import attach
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.filters.optional import healthcheck
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import attachment_status, proxy_process
from metadata_wsgi.netns.target import MODES, NO_WORKER, ONE_HOP, SHARED, KeeperEntry, KeeperState

FAULT_LEVELS = (' WARNING ', ' ERROR ', ' CRITICAL ')
MAX_FAULTS_SHOWN = 5
LOG_TAIL_BYTES = 1 << 18
RESPONSE_TIMEOUT_S = 5.0


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser('status', help='show whether the agent runs and works, and what is attached')
    config_files.add_arguments(parser)
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a paragraph for each part. Returns 1 if something is wrong, else 0."""
    conf = cfg.ConfigOpts()
    conf.register_opts(state_paths.OPTS)
    log.register_options(conf)
    config_files.parse(conf, config_files.files({'config_file': ','.join(args.config_file)}))
    if args.state_path:
        conf.set_override('state_path', os.path.abspath(args.state_path))
    is_well = agent(conf.metadata_proxy_socket)
    if os.geteuid() != 0:
        print('attached    only root can read it')
    else:
        entries, keeper_is_well = keeper(conf.state_path, AttachmentsClient(conf.state_path))
        is_well &= keeper_is_well & attachments(conf.state_path, entries)
    if conf.log_file:
        faults(os.path.join(conf.log_dir or '', conf.log_file))
    else:
        print('faults      the agent logs to standard error: see journalctl')
    return 0 if is_well else 1


def agent(path: str) -> bool:
    """Print which process serves the socket at ``path``, and the response of its healthcheck.

    Returns whether both are well.
    """
    try:
        pid = proxy_process.unix_listener_pid(path)
    except OSError as error:
        print(f'agent       nothing listens at {path} ({error.strerror}): start quantum-metadata-agent')
        return False
    workers = _child_pids(pid)
    print(f'agent       pid {pid} serves {path}; {len(workers)} workers: {", ".join(map(str, workers))}')
    try:
        status, text = _get(path, healthcheck.PATH)
    except (OSError, http.client.HTTPException) as error:
        print(f'health      no response: {str(error) or type(error).__name__}')
        return False
    if status not in (200, 503):
        # The pipeline has no filter healthcheck. It responds 400, because the namespace proxy's headers are missing.
        print('health      the agent responds; the filter healthcheck is not in its pipeline')
        return status == 400
    print('health      ' + '; '.join(text.splitlines()))
    return status == 200


def keeper(state_path: str, state: KeeperState) -> tuple[list[KeeperEntry] | None, bool]:
    """Print whether the keeper runs and which workers serve its sockets.

    Returns the keeper's entries (None if it does not respond) and whether all is well.
    """
    path = admin_client.socket_path(state_path)
    if not os.path.exists(path):
        print('keeper      does not run; only the modes shared and one_hop need it')
        return [], True
    try:
        entries, workers = state.entries(), state.workers()
        pid = proxy_process.unix_listener_pid(path, socket.SOCK_SEQPACKET)
    except (MetadataError, OSError) as error:
        print(f'keeper      {error}; its workers continue to serve, but nothing can be attached')
        return None, False
    counts = ', '.join(f'{workers.get(mode, 0)} in mode {mode}' for mode in (SHARED, ONE_HOP))
    print(f'keeper      pid {pid} has the sockets of {len(entries)} routers and networks; workers: {counts}')
    without_worker = sorted({entry.mode for entry in entries if not workers.get(entry.mode)})
    for mode in without_worker:
        print(f'    ! {NO_WORKER[mode]}')
    return entries, not without_worker


def attachments(state_path: str, entries: list[KeeperEntry] | None) -> bool:
    """Print the attached targets. Returns whether all of them are well.

    ``entries`` are the keeper's; None if the keeper does not respond.
    """
    try:
        found = attachment_status.list_attachments(attach.iptables(), state_path=state_path, keeper_entries=entries)
    except MetadataError as error:
        print(f'attached    {error}')
        return False
    # A mode without a worker is printed once, with the keeper.
    found = [replace(one, problems=tuple(sorted({*one.problems} - {*NO_WORKER.values()}))) for one in found]
    wrong = [one for one in found if one.problems]
    modes = Counter(one.mode for one in found)
    by_mode = ', '.join(f'{modes[mode]} in mode {mode}' for mode in (*MODES, attachment_status.UNKNOWN) if modes[mode])
    print(
        f'attached    {len(found)} routers and networks, {len(wrong)} of them with problems'
        + (by_mode and f': {by_mode}')
    )
    if wrong:
        print(attach.table(wrong), end='')
    return not wrong


def faults(path: str) -> None:
    """Print the last warnings and errors in the log file at ``path``."""
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors='replace').splitlines()
    except OSError as error:
        print(f'faults      {path}: {error.strerror}')
        return
    found = [line for line in lines if any(level in line for level in FAULT_LEVELS)][-MAX_FAULTS_SHOWN:]
    print(f'faults      {path}: {"the last ones" if found else "none in its last 256 KiB"}')
    for line in found:
        print('            ' + ''.join(letter if letter.isprintable() else '?' for letter in line))


def _child_pids(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f'/proc/{pid}/task/{pid}/children').read_text(encoding='ascii').split()]
    except OSError:
        return []


def _get(path: str, target: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection('agent', timeout=RESPONSE_TIMEOUT_S)
    with socket.socket(socket.AF_UNIX) as unix_socket:
        unix_socket.settimeout(RESPONSE_TIMEOUT_S)
        unix_socket.connect(path)
        connection.sock = unix_socket
        connection.request('GET', target)
        response = connection.getresponse()
        return response.status, response.read().decode(errors='replace')
