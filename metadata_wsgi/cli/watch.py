# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi watch``: attach new namespaces of this host, detach deleted ones; for clouds without an L3 agent.

The command lists the namespaces whenever a name is added or removed (inotify), and every ``--interval`` seconds. It
attaches each new ``qrouter-<id>`` or ``qdhcp-<id>``. If a namespace was deleted and created again under the same name,
it is attached again. For a deleted namespace, pid file and sockets are removed.

With each listing the command also lists the keeper's sockets. If a router lost its socket in the keeper, it is attached
again. In mode ``process`` a namespace proxy that ends is started again at once. If other proxies end less than
``--interval`` seconds later, they are started again at the next listing. Every minute (``--again``) all targets are
attached again, which repairs rules that another program removed. Repairs are logged.

``-- --mode`` sets the mode (an option of ``attach``). Without it an attached router keeps its mode, and a new router
gets mode ``shared``. While the keeper does not respond, routers of the modes ``shared`` and ``one_hop`` are not
changed.

If a target cannot be attached yet (for example, a DHCP namespace has no interface yet), each listing tries again. Each
error is logged once. A file in /run/netns that is not a namespace is logged, and does not affect other targets. The
standby of an HA router gets the IPv6 metadata address when keepalived makes it the primary (``--ha-confs-path``).

SIGTERM ends the program and detaches nothing. The next ``watch`` continues with the same targets. Write options of
``attach`` after ``--``, for example ``--neutron-lock-path`` if a Neutron agent runs on the same host. The command needs
root. ``etc/systemd/metadata-wsgi-watch.service`` is its systemd unit. Do not run ``watch`` on a host with an L3 agent
that attaches its routers itself: each program would undo the changes of the other.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence, Set

from metadata_wsgi import safe_files
from metadata_wsgi.cli import attach, attach_command, log_output, root_check, verbs
from metadata_wsgi.cli.reconciler import FULL_RECONCILE_INTERVAL_S, Reconciler, TargetKey
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.netns import attachment_status, host_lock, namespaces, proxy_process
from metadata_wsgi.netns.namespace_events import NamespaceEvents
from metadata_wsgi.netns.process_exits import ProcessExits
from metadata_wsgi.netns.target import NO_WORKER, PROCESS, AttachTarget, KeeperState

LOG = logging.getLogger(__name__)

KINDS = {'qrouter-': 'router', 'qdhcp-': 'network'}

_NAME = re.compile(r'(qrouter-|qdhcp-)([A-Za-z0-9][A-Za-z0-9_-]{3,63})')


HA_CONFS_PATH = '/var/lib/neutron/ha_confs'
HA_STATES = ('primary', 'master', 'backup', 'fault')
HA_STATE_BYTES = 32
PENDING_POLL_S = 0.1
"""Interval of the listings while a namespace is being created."""


class NamespaceListing:
    """Lists the namespaces of routers and networks, each with its identity.

    The identity consists of the namespace's identity and the state of an HA router, because the router's addresses
    change with its state. Names without a namespace are listed too, so that ``attach`` reports them. ``only``:
    'router' or 'network', None for both.

    ``has_pending``: whether the latest listing has left out a file because a namespace may still be mounted on it. Then
    the next listing must follow soon, because inotify does not report the mount.
    """

    def __init__(self, only: str | None = None, ha_confs_path: str = HA_CONFS_PATH) -> None:
        self.has_pending = False
        self._only = only
        self._ha_confs_path = ha_confs_path

    def __call__(self) -> dict[TargetKey, object]:
        """Raises NetnsError if /run/netns cannot be listed."""
        self.has_pending = False
        found: dict[TargetKey, object] = {}
        for entry in namespaces.entries():
            match = _NAME.fullmatch(entry.name)
            if not match or self._only not in (None, KINDS[match[1]]):
                continue
            if entry.identity is None and entry.age_s < attachment_status.STALE_AFTER_S:
                self.has_pending = True
            else:
                found[KINDS[match[1]], match[2]] = (entry.identity, ha_state(self._ha_confs_path, match[2]))
        return found


def ha_state(ha_confs_path: str, router_id: str) -> str:
    """The state of an HA router, as Neutron's keepalived monitor has written it: one of HA_STATES.

    '' for a router without HA.
    """
    # The user neutron may replace directory and file, for example by a link to a file of root, or by a FIFO, which must
    # not block this program. The file may belong to this user, so ``safe_files.open_file`` is too strict.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        directory = safe_files.open_directory(os.path.join(ha_confs_path, router_id))
        try:
            descriptor = os.open('state', flags, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            state = os.read(descriptor, HA_STATE_BYTES).decode(errors='replace').strip() if is_regular else ''
        finally:
            os.close(descriptor)
    except OSError:
        return ''
    return state if state in HA_STATES else ''


class CliAttachAdapter:
    """Attaches and detaches as ``metadata-wsgi attach`` and ``detach`` do, with all their options.

    ``on_progress`` is called after each target, in the thread that has handled it.
    """

    def __init__(
        self,
        common_options: list[str],
        attach_options: list[str],
        *,
        keeper: KeeperState | None = None,
        exits: ProcessExits[TargetKey] | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        parser = argparse.ArgumentParser(prog=verbs.PROGRAM, allow_abbrev=False)
        attach.add_verbs(parser.add_subparsers(required=True))
        # Exits with 2 at once if an option is wrong. The id is a placeholder.
        common = ['--router-id=any-id', *common_options]
        self._attach_args = parser.parse_args(['attach', *common, *attach_options])
        self._detach_args = parser.parse_args(['detach', *common])
        for name in attach_command.COMMON_OPTIONS:
            # These options may also be given after --. They apply to attach and detach.
            setattr(self._detach_args, name, getattr(self._attach_args, name))
        # Raises ConfigError at once for a wrong mark.
        attach_command.AttachCommand(self._attach_args, {}, count=attach_command.BULK_THRESHOLD)
        self._state_path = attach_command.state_path(self._attach_args)
        self._keeper = keeper or AttachmentsClient(self._state_path)
        self._modes: dict[str, str] = {}
        """The modes of targets by id, from the keeper's last response and the running processes."""
        self._exits = exits or ProcessExits()
        """The namespace proxies of the targets that were attached in mode process."""
        self._on_progress = on_progress
        self._keeper_error = ''
        self._modes_without_worker: set[str] = set()

    def in_keeper(self) -> Set[TargetKey] | None:
        """See ``reconciler.AttachActions``."""
        try:
            entries = self._keeper.entries()
        except MetadataError as error:
            self._keeper_error = str(error)
            return None
        self._keeper_error = ''
        self._modes.update((entry.target.uuid, entry.mode) for entry in entries)
        return {(entry.target.kind, entry.target.uuid) for entry in entries}

    def attach(self, targets: Sequence[TargetKey]) -> Mapping[TargetKey, str]:
        """Like ``metadata-wsgi attach --no-wait``. The next reconciliation checks IPv6."""
        try:
            with host_lock.exclusive(self._state_path):
                return self._attach(targets)
        except (MetadataError, OSError) as error:
            # An error of the lock or the configuration concerns all targets.
            return dict.fromkeys(targets, str(error))

    def _attach(self, targets: Sequence[TargetKey]) -> Mapping[TargetKey, str]:
        in_keeper = self.in_keeper()
        errors = {}
        for target in targets:
            if self._has_process(target[1]):
                if target not in (in_keeper or ()):
                    # The target keeps its mode and does not get the default mode.
                    self._modes[target[1]] = PROCESS
            elif in_keeper is None and not self._attach_args.mode and target[1] not in self._modes:
                # The mode is unknown. A worker may listen on the port, and then a new process could not.
                errors[target] = self._keeper_error
        known = [target for target in targets if target not in errors]
        command = attach_command.AttachCommand(self._attach_args, self._modes, count=len(known))
        concurrency = attach_command.concurrent_attaches((self._attach_args.mode, *self._modes.values()))
        errors |= self._errors(known, command.attach, concurrency)
        for target in known:
            if target not in errors:
                self._watch_process(target, command.mode(AttachTarget.of(*target)))
        self._warn_no_worker({command.mode(AttachTarget.of(*target)) for target in known})
        return errors

    def detach(self, targets: Sequence[TargetKey]) -> Mapping[TargetKey, str]:
        """Like ``metadata-wsgi detach``."""
        try:
            with host_lock.exclusive(self._state_path):
                detach = attach_command.detach_command(self._detach_args, count=len(targets))
                errors = self._errors(targets, detach, attach_command.MAX_CONCURRENT_WAITING)
        except (MetadataError, OSError) as error:
            return dict.fromkeys(targets, str(error))
        for target in targets:
            if target not in errors:
                self._modes.pop(target[1], None)
                self._exits.forget(target)
        return errors

    def ended(self) -> Set[TargetKey]:
        """See ``reconciler.AttachActions``."""
        return self._exits.take()

    def _watch_process(self, target: TargetKey, mode: str) -> None:
        pid = proxy_process.running_pid(state_paths.pid_file(self._state_path, target[1]), target[1])
        if mode == PROCESS and pid is not None:
            self._exits.watch(target, pid)
        else:
            self._exits.forget(target)

    def _errors(
        self, targets: Sequence[TargetKey], action: Callable[[AttachTarget], str], concurrency: int
    ) -> dict[TargetKey, str]:
        def run(target: AttachTarget) -> str:
            try:
                return action(target)
            finally:
                self._on_progress()

        outcomes = attach_command.run_for_each([AttachTarget.of(*target) for target in targets], run, concurrency)
        return {target: error for target, (_, error) in zip(targets, outcomes, strict=True) if error}

    def _has_process(self, uuid: str) -> bool:
        return attach_command.has_own_process(self._state_path, uuid)

    def _warn_no_worker(self, modes: set[str]) -> None:
        """Log each mode that no worker serves. The line is not repeated until a worker has served the mode."""
        try:
            without_worker = modes - {PROCESS} - set(self._keeper.workers())
        except MetadataError:
            return
        for mode in sorted(without_worker - self._modes_without_worker):
            LOG.warning('%s', NO_WORKER[mode])
        self._modes_without_worker = without_worker


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'watch',
        description='Runs in the foreground until SIGTERM. Attaches each router and network as soon as its namespace '
        'exists on this host, detaches it when the namespace is deleted, and repairs rules and sockets that are '
        'missing. For hosts whose L3 and DHCP agents do not attach routers and networks themselves.',
    )
    parser.add_argument('--only', choices=sorted(KINDS.values()), help='only routers, or only networks (default: both)')
    parser.add_argument(
        '--interval',
        type=_seconds,
        default=2.0,
        help='seconds between two listings; a new or deleted name is noticed at once (default: %(default)s)',
    )
    parser.add_argument(
        '--again',
        type=_seconds,
        default=FULL_RECONCILE_INTERVAL_S,
        help='seconds after which all targets are checked and repaired (default: %(default)s)',
    )
    config_files.add_arguments(parser, help=', for state_path')
    parser.add_argument('--state-path', help='directory of pid files and socket')
    parser.add_argument(
        '--ha-confs-path',
        default=HA_CONFS_PATH,
        help="directory with the state of HA routers, Neutron's ha_confs_path (default: %(default)s)",
    )
    log_output.add_arguments(parser)
    parser.add_argument('attach_options', nargs='*', metavar='-- OPTION', help='options of attach, after --')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Watch until SIGTERM or SIGINT."""
    root_check.require_root()
    notifier = Notifier.from_environ()
    log_output.set_up(
        [logging.StreamHandler()],
        text_format='%(asctime)s %(process)d %(levelname)s %(name)s %(message)s',
        level=logging.INFO,
        use_json=args.use_json,
        use_journal=args.use_journal,
    )
    common_options = [f'--config-file={file}' for file in args.config_file]
    if args.state_path:
        common_options.append(f'--state-path={args.state_path}')
    exits: ProcessExits[TargetKey] = ProcessExits()
    listing = NamespaceListing(args.only, args.ha_confs_path)
    reconciler = Reconciler(
        listing,
        CliAttachAdapter(common_options, args.attach_options, exits=exits, on_progress=notifier.progress),
        full_interval_s=args.again,
    )
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False
        events.wake()

    with NamespaceEvents() as events:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        # READY is sent before the first attachments: a thousand of them may take longer than systemd's start timeout.
        notifier.ready('Attaching what is there')
        leftovers = _leftovers(args)
        _reconcile(lambda: reconciler.start(leftovers), reconciler, notifier)
        next_restart_s = 0.0
        while running:
            # A namespace proxy that always ends at its start must not keep this host busy.
            may_restart = time.monotonic() >= next_restart_s
            events.wait(
                PENDING_POLL_S if listing.has_pending else args.interval, exits.fileno() if may_restart else None
            )
            if running:
                if exits.has_ended():
                    next_restart_s = time.monotonic() + args.interval
                _reconcile(reconciler.reconcile, reconciler, notifier)
    notifier.stopping()
    return 0


def _reconcile(reconcile: Callable[[], None], reconciler: Reconciler, notifier: Notifier) -> None:
    """Call ``reconcile``, which is a method of ``reconciler``. Logs its errors."""
    try:
        reconcile()
    except (MetadataError, OSError) as error:
        # For example, /run/netns cannot be read. The program continues, and retries at the next event or interval.
        LOG.error('Nothing was reconciled this time: %s', error)
        notifier.status(f'Nothing is attached or detached: {error}')
    else:
        notifier.status(reconciler.summary())
    notifier.progress()


def _leftovers(args: argparse.Namespace) -> list[TargetKey]:
    """The attached routers and networks with a deleted namespace."""
    state_path = (
        args.state_path or config_files.load({'config_file': ','.join(args.config_file)}, state_paths.OPTS).state_path
    )
    try:
        found = attachment_status.list_attachments(attach_command.iptables(), state_path=os.path.abspath(state_path))
    except (MetadataError, OSError) as error:
        # Pid files and sockets of deleted namespaces then stay until the next start.
        LOG.warning('Attachments of deleted namespaces cannot be listed, so they are not removed: %s', error)
        return []
    return [(one.kind, one.uuid) for one in found if one.namespace is None and args.only in (None, one.kind)]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of seconds from 0.1 to 3600')
    return seconds
