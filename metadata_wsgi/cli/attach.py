# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi attach``, ``detach`` and ``attached``: attach routers and networks by hand, detach and list them.

Quantum's L3 agent attaches its routers itself. These commands are for clouds without an L3 agent, for repairs, and to
show what is attached. They need root. ``attached`` exits with 1 if a target is only partly attached, so a monitoring
system can run it. With several targets, a failure of one target does not stop the others.

The mode of a router selects the process that accepts its connections (``doc/modes.md``). Without ``--mode`` an attached
router keeps its mode, and a new router gets ``shared``: keeper and shared proxy are started if they do not run. If the
shared proxy cannot be started, the router gets ``process``.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import SOCK_SEQPACKET
from typing import Any

from metadata_wsgi.cli import listing, root_check, verbs
from metadata_wsgi.cli.exit_codes import NOT_WELL, WELL
from metadata_wsgi.cli.terminal import RED, Progress, paint
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import MetadataError, NetnsError, UsageError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import attachment_status, lock, namespaces, neutron_lock, proxy_process
from metadata_wsgi.netns.attach import Attacher, ProxyCommand, kernel_families
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.neutron_lock import NeutronIptablesLock
from metadata_wsgi.netns.rules import Rule, rules_for
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import MODES, NETWORK, NO_WORKER, ONE_HOP, PROCESS, ROUTER, SHARED, AttachTarget

LOG = logging.getLogger(__name__)

PROGRAM = 'metadata-wsgi'

MAX_CONCURRENT_ATTACHES = 8
MAX_CONCURRENT_WAITS = 64
"""Number of targets that wait for duplicate address detection at the same time."""
COMMON_OPTIONS = ('config_file', 'state_path', 'metadata_proxy_socket', 'iptables', 'neutron_lock_path')
"""Options of all three commands: ``attach``, ``detach`` and ``attached``."""
BULK_THRESHOLD = 4
"""With at least this many targets, iptables creates the rules once, and netlink copies them to the namespaces
(``netns.ruleset_template``)."""

COLUMNS = ('kind', 'id', 'namespace', 'mode', 'pid', 'port', 'rules', 'problems', 'notes')
"""The columns of ``attached``."""

OUTCOMES = {
    PROCESS: ('its proxy runs already', 'a proxy was started'),
    SHARED: ('the shared proxy serves it already', 'the shared proxy serves it'),
    ONE_HOP: ('the agent serves it already', 'the agent serves it'),
}
"""The texts that ``attach`` prints, by mode: (nothing was changed, something was changed)."""


def add_verbs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three subcommands; each sets ``run``, which takes the parsed arguments and returns an exit code."""
    attach = verbs.add_parser(
        subparsers,
        'attach',
        description='Makes this host serve the metadata of the instances behind a router or on an isolated network: '
        'installs the redirect rules (a router) or the address (a network) in its namespace, and has a process listen '
        'there. Correct rules, addresses and listeners stay, so the command can be repeated. Needs root.',
    )
    _add_target_options(attach.add_mutually_exclusive_group(required=True))
    _add_common_options(attach)
    attach.add_argument(
        '--mode',
        choices=MODES,
        help='the process that serves the instances: "shared", one proxy for all namespaces of the host; "one_hop", '
        'the agent itself; "process", a namespace proxy for this target alone, which costs tens of MB. shared and '
        'one_hop need the keeper (default: the present mode of the target, else shared; keeper and shared proxy are '
        'started if they do not run)',
    )
    attach.add_argument('--namespace', help='namespace of the target (default: qrouter-<id> or qdhcp-<id>)')
    attach.add_argument('--metadata-port', type=_port, default=9697, help="a router's port (default: %(default)s)")
    attach.add_argument(
        '--internal-interfaces',
        type=_interface,
        default='qr-+',
        help="a router's interfaces towards instances; + at the end matches any characters (default: %(default)s)",
    )
    attach.add_argument('--mark', default='0x1/0xffff', help='mark of redirected packets (default: %(default)s)')
    attach.add_argument(
        '--interface', type=_interface, help="a network's interface, to which the metadata addresses are added"
    )
    attach.add_argument('--program', default=default_program(), help='the namespace proxy (default: %(default)s)')
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
    _add_common_options(detach)
    detach.add_argument('--namespace', help='namespace of the target (default: qrouter-<id> or qdhcp-<id>)')
    detach.set_defaults(run=_detach)

    attached = verbs.add_parser(
        subparsers,
        'attached',
        description='Shows every router and network of this host that has a namespace proxy, a socket in the keeper or '
        'rules of this package, as the kernel has them now. A line with ! is a problem and says how to repair it; then '
        'the exit code is 1. A line with - is a note: no repair is needed. Needs root.',
    )
    _add_common_options(attached)
    listing.add_arguments(attached, COLUMNS)
    attached.set_defaults(run=_attached)


def default_program() -> str:
    """The path of ``quantum-ns-metadata-proxy``: the file beside this program, else the first one on PATH."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), 'quantum-ns-metadata-proxy')
    if os.access(beside, os.X_OK):
        return beside
    return shutil.which('quantum-ns-metadata-proxy') or 'quantum-ns-metadata-proxy'


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


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    config_files.add_arguments(parser, help=', for state path and socket')
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.add_argument('--metadata-proxy-socket', help="the agent's socket")
    parser.add_argument(
        '--iptables', metavar='NAME', help='iptables, iptables-nft or iptables-legacy (default: the one in use)'
    )
    parser.add_argument(
        '--neutron-lock-path',
        metavar='DIR',
        help="directory of Neutron's external locks: [oslo_concurrency] lock_path of neutron.conf. Neutron's lock on a "
        "namespace's rules is held while the rules are changed (default: lock_path of --config-file, else no lock)",
    )


def _attach(args: argparse.Namespace) -> int:
    root_check.require_root()
    targets = _targets(args)
    with lock.exclusive(state_path(args)):
        entries = [] if args.mode else AttachmentsClient(state_path(args)).entries()
        modes = {target.uuid: PROCESS for target in targets if has_own_process(state_path(args), target.uuid)}
        modes |= {entry.target.uuid: entry.mode for entry in entries}
        command = AttachCommand(args, modes, count=len(targets))
        failed = _run_and_print(targets, command.attach, MAX_CONCURRENT_ATTACHES)
        attached = [target for target in targets if target not in failed]
        if not args.no_wait:
            # The kernel does duplicate address detection for all addresses at the same time.
            failed += _run_and_print(attached, command.settle, MAX_CONCURRENT_WAITS)
    _warn_no_worker(args, {command.mode(target) for target in attached})
    return NOT_WELL if failed else WELL


def has_own_process(path: str, uuid: str) -> bool:
    """Whether the target has a namespace proxy of its own (mode process).

    The process in the pid file may also be a holder. A holder accepts no connections, so it does not count.
    """
    pid = proxy_process.running_pid(state_paths.pid_file(path, uuid), uuid)
    return pid is not None and not proxy_process.is_holder(pid)


class AttachCommand:
    """Attaches targets with the arguments ``args`` of the command ``attach``.

    ``modes`` has the present mode of each attached target, by id. ``count`` is the approximate number of targets: from
    BULK_THRESHOLD on, rules are copied.
    """

    def __init__(self, args: argparse.Namespace, modes: Mapping[str, str], *, count: int) -> None:
        self._args = args
        self._modes = modes
        self._new_mode: str | None = None
        rules = {'port': args.metadata_port, 'interfaces': args.internal_interfaces, 'mark': args.mark}
        self._attacher = _attacher(args, _bulk_rules(count, **rules), args.program, args.log_dir)

    def attach(self, target: AttachTarget) -> str:
        """Attach the target without waiting for IPv6. Returns a message to print. Raises MetadataError if it fails."""
        changed = self._attacher.attach(
            target,
            **self._options(target),
            mark=self._args.mark,
            interface=self._args.interface,
            wait_for_ipv6=False,
        )
        outcome = OUTCOMES[self.mode(target)][changed]
        return f'{target.kind} {target.uuid} is attached in {target.namespace}: {outcome}'

    def settle(self, target: AttachTarget) -> str:
        """Wait until the target's IPv6 address can be used. Returns '', because there is nothing to print."""
        self._attacher.settle(target, **self._options(target))
        return ''

    def mode(self, target: AttachTarget) -> str:
        """The mode in which ``target`` is attached."""
        known = self._args.mode or self._modes.get(target.uuid)
        if not known and not namespaces.exists(target.namespace):
            return SHARED  # the target cannot be attached, so no process is started for it
        return str(known or self._default_mode())

    def _default_mode(self) -> str:
        """The mode of new targets: SHARED if the shared proxy runs or can be started, else PROCESS."""
        from metadata_wsgi.cli import shared_proxy
        from metadata_wsgi.filters import header_source

        if self._new_mode is None:
            self._new_mode = SHARED
            path, socket = _paths(self._args)
            files = {'config_file': ','.join(self._args.config_file)} if self._args.config_file else {}
            prefix = config_files.load(files, header_source.OPTS).metadata_header_prefix
            options = [f'--metadata_proxy_socket={socket}', f'--metadata_header_prefix={prefix}']
            if self._args.log_dir:
                options.append(f'--log_dir={self._args.log_dir}')
            try:
                shared_proxy.SharedProxy(path, options).ensure_running()
            except NetnsError as error:
                self._new_mode = PROCESS
                LOG.warning('New targets get mode process, which costs tens of MB for each target: %s', error)
        return self._new_mode

    def _options(self, target: AttachTarget) -> dict[str, Any]:
        interfaces = self._args.internal_interfaces
        return {'mode': self.mode(target), 'port': self._args.metadata_port, 'interfaces': interfaces}


def _warn_no_worker(args: argparse.Namespace, modes: set[str]) -> None:
    keeper_modes = modes - {PROCESS}
    workers = AttachmentsClient(state_path(args)).workers() if keeper_modes else {}
    for mode in sorted(keeper_modes - set(workers)):
        print(f'{PROGRAM}: {NO_WORKER[mode]}', file=sys.stderr)


def _detach(args: argparse.Namespace) -> int:
    root_check.require_root()
    with lock.exclusive(state_path(args)):
        found, keeper_error = statuses(args) if args.all else ([], '')
        targets = [status.target for status in found] if args.all else _targets(args)
        failed = _run_and_print(targets, detach_command(args, count=len(targets)), MAX_CONCURRENT_ATTACHES)
        return NOT_WELL if failed or keeper_error else WELL


def detach_command(args: argparse.Namespace, *, count: int) -> Callable[[AttachTarget], str]:
    """A function that detaches a target, with the arguments of ``detach``. ``count``: approximate number of targets."""
    attacher = _attacher(args, _bulk_rules(count))

    def detach(target: AttachTarget) -> str:
        return f'{target.kind} {target.uuid} {"is detached" if attacher.detach(target) else "was not attached"}'

    return detach


def run_for_each(
    targets: Sequence[AttachTarget],
    action: Callable[[AttachTarget], str],
    concurrency: int = MAX_CONCURRENT_ATTACHES,
    on_done: Callable[[], object] = lambda: None,
) -> list[tuple[str, str]]:
    """Run ``action`` for each target, ``concurrency`` at a time.

    Returns for each target (result of ``action``, '') or ('', error message). ``on_done`` is called after each target,
    in the thread that ran its action.
    """

    def run(target: AttachTarget) -> tuple[str, str]:
        result = run_one(target)
        on_done()
        return result

    def run_one(target: AttachTarget) -> tuple[str, str]:
        try:
            return action(target), ''
        except (MetadataError, OSError) as error:
            return '', str(error)
        except Exception as error:
            # A fault of this program at one target must not prevent the attachment of the others.
            LOG.exception('%s %s: unexpected error', target.kind, target.uuid)
            return '', f'{type(error).__name__}: {error}'

    if len(targets) < 2:
        return [run(target) for target in targets]
    with ThreadPoolExecutor(min(concurrency, len(targets))) as pool:
        return list(pool.map(run, targets))


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
        print(f'{PROGRAM}: {prefix}{error}', file=sys.stderr)
    if errors and len(targets) > 1:
        print(f'{PROGRAM}: {len(errors)} of {len(targets)} failed', file=sys.stderr)
    return [*errors]


def _attached(args: argparse.Namespace) -> int:
    root_check.require_root()
    found, keeper_error = statuses(args)
    if listing.is_text(args):
        print(table(found), end='')
    else:
        listing.write(args, to_listing(found), sys.stdout)
    return NOT_WELL if keeper_error or any(status.problems for status in found) else WELL


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


def _paths(args: argparse.Namespace) -> tuple[str, str]:
    """(state_path, metadata_proxy_socket). An argument overrides the configuration file.

    The default of the socket is a path below the state path.
    """
    conf = config_files.load({'config_file': ','.join(args.config_file)}, state_paths.OPTS)
    if args.state_path:
        conf.set_override('state_path', os.path.abspath(args.state_path))
    if args.metadata_proxy_socket:
        conf.set_override('metadata_proxy_socket', os.path.abspath(args.metadata_proxy_socket))
    return conf.state_path, conf.metadata_proxy_socket


def _bulk_rules(count: int, **options: Any) -> Sequence[Rule]:
    """The rules to copy. Empty for fewer than BULK_THRESHOLD targets, because copying then saves no time."""
    return rules_for(families=kernel_families(), **options) if count >= BULK_THRESHOLD else ()


def _attacher(args: argparse.Namespace, bulk_rules: Sequence[Rule], program: str = '', log_dir: str = '') -> Attacher:
    path, socket = _paths(args)
    proxy = ProxyCommand(program=program, state_path=path, socket=socket, log_dir=log_dir and os.path.abspath(log_dir))
    runner = SubprocessRunner()
    return Attacher(
        runner,
        proxy=proxy,
        iptables=Iptables(runner, binary=args.iptables, bulk_rules=bulk_rules, lock=_neutron_lock(args)),
        keeper=AttachmentsClient(path),
        keeper_pid=lambda: _keeper_pid(path),
    )


def _neutron_lock(args: argparse.Namespace) -> NeutronIptablesLock:
    path = args.neutron_lock_path
    if path is None:
        # state_path is loaded too, because lock_path may be $state_path/lock.
        conf = config_files.load({'config_file': ','.join(args.config_file)}, state_paths.OPTS)
        conf.register_opts(neutron_lock.OPTS, neutron_lock.GROUP)
        path = conf.oslo_concurrency.lock_path
    return NeutronIptablesLock(path)


def _keeper_pid(path: str) -> int | None:
    try:
        # The pid is 0 if the keeper is in another pid namespace.
        return proxy_process.unix_listener_pid(admin_client.socket_path(path), SOCK_SEQPACKET) or None
    except OSError:
        return None


def statuses(args: argparse.Namespace) -> tuple[list[attachment_status.AttachmentStatus], str]:
    """The status of each attached target, and an error message if the keeper does not respond, else ''.

    The error message is also printed.
    """
    path = state_path(args)
    entries, keeper_error = None, ''
    try:
        entries = AttachmentsClient(path).entries()
    except MetadataError as error:
        keeper_error = str(error)
        print(f'{PROGRAM}: {keeper_error}', file=sys.stderr)
    found = attachment_status.list_attachments(iptables(args.iptables), state_path=path, keeper_entries=entries)
    return found, keeper_error


def state_path(args: argparse.Namespace) -> str:
    """The directory of pid files and of the keeper's socket."""
    return _paths(args)[0]


def iptables(binary: str | None = None) -> Iptables:
    """An Iptables that reads the rules of all namespaces of this host."""
    return Iptables(SubprocessRunner(), binary=binary, bulk_rules=_bulk_rules(len(namespaces.names())))


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
