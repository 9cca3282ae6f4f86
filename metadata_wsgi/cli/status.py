# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi status``: shows whether agent and keeper run, what is attached, and the last faults in the log.

The command reads the present state from the sockets, the kernel and the log. A monitoring system can use the exit code
(``exit_codes``).
"""

from __future__ import annotations

import argparse
import errno
import http.client
import os
import socket
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from oslo_config import cfg

from metadata_wsgi.cli import attach_command, attached, findings, healthcheck, listing, recent_failures, verbs
from metadata_wsgi.cli.findings import NOT_WELL, UNKNOWN, WELL, Finding
from metadata_wsgi.cli.terminal import printable
from metadata_wsgi.config import config_files, neutron_files, state_paths
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import attachment_status, proxy_process
from metadata_wsgi.netns.target import MODES, NO_WORKER, ONE_HOP, SHARED, KeeperEntry, KeeperState

FAULT_LEVELS = (' WARNING ', ' ERROR ', ' CRITICAL ')
MAX_FAULTS_SHOWN = 5
LOG_TAIL_BYTES = 1 << 18
PART_WIDTH = 12
LOG_OPTS = [cfg.StrOpt('log_file', deprecated_name='logfile'), cfg.StrOpt('log_dir', deprecated_name='logdir')]
"""oslo.log's options for the path of the log. They are declared here again, because oslo.log is slow to import."""
LOG_NAMES = ('quantum-metadata-agent.log', 'neutron-metadata-agent-wsgi.log', 'neutron-metadata-agent.log')
"""Log files in ``log_dir``: the names of the two programs, and of a link in the place of Neutron's program."""


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'status',
        description='Shows whether agent and keeper run and respond, which routers and networks have problems, and the '
        'last warnings and errors of the log. Exit code 0: all is well. 1: there is a problem. 2: a part could not be '
        'read, for example without root, and the other parts have no problem.',
    )
    neutron_files.add_arguments(parser)
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.add_argument(
        '--failures',
        action='store_true',
        help='show only the recent failed requests: client, error status, reason, number, and time of the last one',
    )
    listing.add_arguments(parser, (*findings.COLUMNS, *recent_failures.COLUMNS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the finding of each part as soon as it is known. Returns the exit code of all findings together."""
    if args.failures:
        return recent_failures.show(args)
    conf = cfg.ConfigOpts()
    conf.register_opts(state_paths.OPTS)
    conf.register_opts(LOG_OPTS)
    config_files.parse(conf, config_files.files(neutron_files.global_conf_of(args)))
    if args.state_path:
        conf.set_override('state_path', os.path.abspath(args.state_path))
    found = []
    for finding in parts(conf):
        found.append(finding)
        if listing.is_text(args):
            findings.show(finding, PART_WIDTH)
    if not listing.is_text(args):
        listing.write(args, findings.to_listing(found), sys.stdout)
    return findings.exit_code(found)


def parts(conf: cfg.ConfigOpts) -> Iterator[Finding]:
    """A finding for each part: agent and its health, keeper, attached routers and networks, faults in the log."""
    yield from agent(conf.metadata_proxy_socket)
    if os.geteuid() != 0:
        yield Finding('attached', UNKNOWN, 'only root can read it')
    else:
        entries, found = keeper(conf.state_path, AttachmentsClient(conf.state_path))
        yield found
        yield attachments(conf.state_path, entries)
    path = log_path(conf)
    if path:
        yield faults(path)
    else:
        yield Finding('faults', WELL, 'the agent logs to standard error: see journalctl')


def agent(path: str) -> Iterator[Finding]:
    """Which process serves the socket at ``path``, and the response of its healthcheck."""
    try:
        pid = proxy_process.unix_listener_pid(path)
    except PermissionError as error:
        yield Finding('agent', UNKNOWN, f'{path} cannot be opened ({error.strerror}): run it as root')
        return
    except OSError as error:
        text = f'nothing listens at {path} ({error.strerror}): start the agent'
        yield Finding('agent', NOT_WELL, text)
        return
    workers = _child_pids(pid)
    pids = ', '.join(map(str, workers))
    yield Finding('agent', WELL, f'pid {pid} serves {path}; {len(workers)} workers: {pids}')
    yield _health(path)


def _health(path: str) -> Finding:
    try:
        status, text = healthcheck.get(path, healthcheck.PATH)
    except (OSError, http.client.HTTPException) as error:
        return Finding('health', NOT_WELL, f'no response: {str(error) or type(error).__name__}')
    if status not in (200, 503):
        # Without the filter healthcheck the agent responds 400, because the headers of a namespace proxy are missing.
        state = WELL if status == 400 else NOT_WELL
        return Finding('health', state, 'the agent responds; the filter healthcheck is not in its pipeline')
    return Finding('health', WELL if status == 200 else NOT_WELL, printable('; '.join(text.splitlines())))


def keeper(state_path: str, state: KeeperState) -> tuple[list[KeeperEntry] | None, Finding]:
    """The keeper's entries (None if it does not respond), and the finding about the keeper and its workers."""
    path = admin_client.socket_path(state_path)
    if not os.path.exists(path):
        return [], Finding('keeper', WELL, 'does not run; only the modes shared and one_hop need it')
    try:
        entries, workers = state.entries(), state.workers()
        pid = proxy_process.unix_listener_pid(path, socket.SOCK_SEQPACKET)
    except (MetadataError, OSError) as error:
        return None, Finding('keeper', NOT_WELL, f'{error}; its workers continue to serve, but nothing can be attached')
    counts = ', '.join(f'{workers.get(mode, 0)} in mode {mode}' for mode in (SHARED, ONE_HOP))
    text = f'pid {pid} has the sockets of {len(entries)} routers and networks; workers: {counts}'
    without_worker = sorted({entry.mode for entry in entries if not workers.get(entry.mode)})
    details = tuple(f'    ! {NO_WORKER[mode]}' for mode in without_worker)
    return entries, Finding('keeper', NOT_WELL if without_worker else WELL, text, details)


def attachments(state_path: str, entries: list[KeeperEntry] | None) -> Finding:
    """The finding about attached routers and networks. ``entries`` is None if the keeper does not respond."""
    try:
        found = attachment_status.list_attachments(
            attach_command.iptables(), state_path=state_path, keeper_entries=entries
        )
    except MetadataError as error:
        return Finding('attached', NOT_WELL, str(error))
    # A mode without a worker is reported only once, in the finding about the keeper.
    found = [replace(one, problems=tuple(sorted({*one.problems} - {*NO_WORKER.values()}))) for one in found]
    wrong = [one for one in found if one.problems]
    modes = Counter(one.mode for one in found)
    by_mode = ', '.join(f'{modes[mode]} in mode {mode}' for mode in (*MODES, attachment_status.UNKNOWN) if modes[mode])
    text = f'{len(found)} routers and networks, {len(wrong)} of them with problems' + (by_mode and f': {by_mode}')
    return Finding(
        'attached', NOT_WELL if wrong else WELL, text, tuple(attached.table(wrong).splitlines() if wrong else ())
    )


def log_path(conf: cfg.ConfigOpts) -> str | None:
    """The path of the agent's log file, as oslo.log makes it; None if the agent logs to standard error.

    If only ``log_dir`` is set, oslo.log names the file after the program. Of several such files the newest one is used.
    """
    if conf.log_file:
        return os.path.join(conf.log_dir or '', conf.log_file)
    if conf.log_dir:
        return max((os.path.join(conf.log_dir, name) for name in LOG_NAMES), key=_changed_at_s)
    return None


def _changed_at_s(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def faults(path: str) -> Finding:
    """The last warnings and errors in the log file at ``path``. They may be old, so they change no exit code."""
    try:
        found = last_faults(path, MAX_FAULTS_SHOWN)
    except OSError as error:
        return Finding('faults', UNKNOWN, f'{path}: {error.strerror}')
    text = f'{path}: {"the last ones" if found else "none in its last 256 KiB"}'
    return Finding('faults', WELL, text, tuple(' ' * PART_WIDTH + printable(line) for line in found))


def last_faults(path: str, count: int) -> list[str]:
    """The last ``count`` warnings and errors in the last LOG_TAIL_BYTES of the log. Raises OSError."""
    # A worker may be able to replace the log by a FIFO. Without O_NONBLOCK the call would wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb') as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, 'not a regular file')
        file.seek(max(0, found.st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors='replace').splitlines()
    return [line for line in lines if any(level in line for level in FAULT_LEVELS)][-count:]


def _child_pids(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f'/proc/{pid}/task/{pid}/children').read_text(encoding='ascii').split()]
    except OSError:
        return []
