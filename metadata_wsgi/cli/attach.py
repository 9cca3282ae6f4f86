# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi attach`` and ``detach``: attach routers and networks by hand, and detach them.

Quantum's L3 agent attaches its routers itself. These commands are for clouds without an L3 agent, and for repairs. They
need root. With several targets, a failure of one target does not stop the others.

The mode of a router selects the process that accepts its connections (``doc/modes.md``). Without ``--mode`` an attached
router keeps its mode, and a new router gets ``shared``. Then keeper and shared proxy are started if they do not run. If
the shared proxy cannot be started, the new router gets ``process``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from metadata_wsgi.cli import attached, installed_programs, root_check, verbs
from metadata_wsgi.cli.attach_command import (
    MAX_CONCURRENT_WAITING,
    AttachCommand,
    add_common_options,
    concurrent_attaches,
    detach_command,
    has_own_process,
    run_for_each,
    state_path,
)
from metadata_wsgi.cli.exit_codes import NOT_WELL, WELL
from metadata_wsgi.cli.terminal import Progress
from metadata_wsgi.errors import UsageError
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import host_lock
from metadata_wsgi.netns.rules import DEFAULT_INTERFACES, DEFAULT_MARK, DEFAULT_PORT
from metadata_wsgi.netns.target import MODES, NETWORK, NO_WORKER, PROCESS, ROUTER, AttachTarget

MAX_CONCURRENT_WAITS = 64
"""Number of targets that wait for duplicate address detection at the same time."""


def add_verbs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verbs. Each sets ``args.run``, which takes the parsed arguments and returns an exit code."""
    attach = verbs.add_parser(
        subparsers,
        'attach',
        description='Makes this host serve the metadata of the instances behind a router or on an isolated network: '
        'installs the redirect rules (a router) or the address (a network) in its namespace, and has a process listen '
        'there. Correct rules, addresses and listeners stay, so the command can be repeated. Needs root.',
    )
    _add_target_options(attach.add_mutually_exclusive_group(required=True))
    add_common_options(attach)
    attach.add_argument(
        '--mode',
        choices=MODES,
        help='the process that serves the instances: "shared", one proxy for all namespaces of the host; "one_hop", '
        'the agent itself; "process", a namespace proxy for this target alone, which costs tens of MB. shared and '
        'one_hop need the keeper (default: the present mode of the target, else shared; keeper and shared proxy are '
        'started if they do not run)',
    )
    attach.add_argument('--namespace', help='namespace of the target (default: qrouter-<id> or qdhcp-<id>)')
    attach.add_argument(
        '--metadata-port', type=_port, default=DEFAULT_PORT, help="a router's port (default: %(default)s)"
    )
    attach.add_argument(
        '--internal-interfaces',
        type=_interface,
        default=DEFAULT_INTERFACES,
        help="a router's interfaces towards instances; + at the end matches any characters (default: %(default)s)",
    )
    attach.add_argument('--mark', default=DEFAULT_MARK, help='mark of redirected packets (default: %(default)s)')
    attach.add_argument(
        '--interface', type=_interface, help="a network's interface, to which the metadata addresses are added"
    )
    attach.add_argument(
        '--program',
        default=installed_programs.path('quantum-ns-metadata-proxy'),
        help='the namespace proxy (default: quantum-ns-metadata-proxy in the directory of this program)',
    )
    attach.add_argument('--log-dir', default='', help="directory of the proxy's log file (default: no log file)")
    attach.add_argument(
        '--no-wait',
        action='store_true',
        help='do not wait for IPv6 duplicate address detection (2 s) and do not report its result',
    )
    attach.set_defaults(run=_attach)

    detach = verbs.add_parser(
        subparsers,
        'detach',
        description='Closes the listening sockets of a router or network, removes its rules and addresses, and ends '
        'its own namespace proxy, if it has one. It is no error if the target was not attached. Needs root.',
    )
    which = detach.add_mutually_exclusive_group(required=True)
    _add_target_options(which)
    which.add_argument('--all', action='store_true', help='all targets that "attached" shows')
    add_common_options(detach)
    detach.add_argument('--namespace', help='namespace of the target (default: qrouter-<id> or qdhcp-<id>)')
    detach.set_defaults(run=_detach)


def _add_target_options(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument('--router-id', type=_uuid, metavar='ID', action='append', help='a router; may be repeated')
    group.add_argument(
        '--network-id', type=_uuid, metavar='ID', action='append', help='a network without a router; may be repeated'
    )
    group.add_argument(
        '--file',
        metavar='LIST',
        help='file with many targets: lines "router ID" or "network ID", then the namespace if it is not the default; '
        '- is stdin',
    )


def _attach(args: argparse.Namespace) -> int:
    root_check.require_root()
    targets = _targets(args)
    path = state_path(args)
    with host_lock.exclusive(path):
        entries = [] if args.mode else AttachmentsClient(path).entries()
        modes = {target.uuid: PROCESS for target in targets if has_own_process(path, target.uuid)}
        modes |= {entry.target.uuid: entry.mode for entry in entries}
        command = AttachCommand(args, modes, count=len(targets))
        failed = _run_and_print(targets, command.attach, concurrent_attaches((args.mode, *modes.values())))
        done = [target for target in targets if target not in failed]
        if not args.no_wait:
            # The kernel does duplicate address detection for all addresses at the same time.
            failed += _run_and_print(done, command.settle, MAX_CONCURRENT_WAITS)
    _warn_no_worker(args, {command.mode(target) for target in done})
    return NOT_WELL if failed else WELL


def _warn_no_worker(args: argparse.Namespace, modes: set[str]) -> None:
    keeper_modes = modes - {PROCESS}
    workers = AttachmentsClient(state_path(args)).workers() if keeper_modes else {}
    for mode in sorted(keeper_modes - set(workers)):
        print(f'{verbs.PROGRAM}: {NO_WORKER[mode]}', file=sys.stderr)


def _detach(args: argparse.Namespace) -> int:
    root_check.require_root()
    with host_lock.exclusive(state_path(args)):
        found, keeper_error = attached.statuses(args) if args.all else ([], '')
        targets = [status.target for status in found] if args.all else _targets(args)
        failed = _run_and_print(targets, detach_command(args, count=len(targets)), MAX_CONCURRENT_WAITING)
        return NOT_WELL if failed or keeper_error else WELL


def _run_and_print(
    targets: Sequence[AttachTarget], action: Callable[[AttachTarget], str], concurrency: int
) -> list[AttachTarget]:
    """Call ``run_for_each``, print each result and then each error. Returns the targets that failed."""
    errors = {}
    with Progress('Routers and networks:', len(targets)) as progress:
        results = run_for_each(targets, action, concurrency, progress.step)
    for target, (message, error) in zip(targets, results, strict=True):
        if error:
            errors[target] = error
        elif message:
            print(message)
    for target, error in errors.items():
        prefix = f'{target.kind} {target.uuid}: ' if len(targets) > 1 else ''
        print(f'{verbs.PROGRAM}: {prefix}{error}', file=sys.stderr)
    if errors and len(targets) > 1:
        print(f'{verbs.PROGRAM}: {len(errors)} of {len(targets)} failed', file=sys.stderr)
    return [*errors]


def _targets(args: argparse.Namespace) -> list[AttachTarget]:
    if args.file:
        if args.namespace:
            raise UsageError('--namespace is for one router or network; in a list, write the namespace after the id')
        return list(dict.fromkeys(_targets_in_file(args.file)))
    kind, ids = (ROUTER, args.router_id) if args.router_id else (NETWORK, args.network_id)
    if args.namespace and len(ids) > 1:
        raise UsageError('--namespace is for one router or network')
    return [AttachTarget.of(kind, uuid, args.namespace) for uuid in dict.fromkeys(ids)]


def _targets_in_file(name: str) -> Iterable[AttachTarget]:
    try:
        text = sys.stdin.read() if name == '-' else Path(name).read_text(encoding='utf-8')
    except (OSError, UnicodeError) as error:
        raise UsageError(f'{name}: cannot be read: {error}') from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition('#')[0].split()
        if not words:
            continue
        if words[0] not in (ROUTER, NETWORK) or not 2 <= len(words) <= 3:
            raise UsageError(
                f'{name} line {number}: expected "router ID" or "network ID", optionally followed by a namespace'
            )
        try:
            yield AttachTarget.of(words[0], _uuid(words[1]), words[2] if len(words) == 3 else None)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f'{name} line {number}: {error}') from error


def _uuid(text: str) -> str:
    # The id becomes part of file names, namespace names and command lines, so only safe characters are allowed.
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_-]{3,63}', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not an id: an id is 4 to 64 letters, digits and dashes')
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f'{text!r} is not a port: a port is a number from 1 to 65535')
    return int(text)


def _interface(text: str) -> str:
    # IFNAMSIZ is 16 with the terminating 0. The name is a word in the input of iptables-restore: no blanks, no quotes.
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_.@-]{0,13}[A-Za-z0-9_.+-]?', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not an interface name')
    return text
