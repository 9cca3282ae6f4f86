# SPDX-License-Identifier: Apache-2.0
"""Attaches and detaches many targets, for the verbs ``attach``, ``detach``, ``attached`` and ``watch``."""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from socket import SOCK_SEQPACKET
from typing import Any

from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import MetadataError, NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns import interface_state, namespaces, neutron_lock, proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.iptables import Iptables, kernel_families
from metadata_wsgi.netns.neutron_lock import NeutronIptablesLock
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.rules import Rule, rules_for
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import ONE_HOP, PROCESS, SHARED, AttachTarget

LOG = logging.getLogger(__name__)

MAX_CONCURRENT_ATTACHES = 3
"""With more threads, an attach takes more CPU time and not less time: only one thread at a time runs Python."""
MAX_CONCURRENT_WAITING = 8
"""For actions that mostly wait for other processes: a detach, and an attach in mode ``process``."""
COMMON_OPTIONS = ('config_file', 'state_path', 'metadata_proxy_socket', 'iptables', 'neutron_lock_path')
"""Options that ``attach``, ``detach`` and ``attached`` have in common."""
BULK_THRESHOLD = 4
"""With at least this many targets, iptables creates the rules once, and netlink copies them to the namespaces
(``netns.ruleset_template``)."""


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options in COMMON_OPTIONS."""
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


OUTCOMES = {
    PROCESS: ('its proxy runs already', 'a proxy was started'),
    SHARED: ('the shared proxy serves it already', 'the shared proxy serves it'),
    ONE_HOP: ('the agent serves it already', 'the agent serves it'),
}
"""The texts that ``attach`` prints about the listener, by mode: (it was not changed, it was changed)."""


class AttachCommand:
    """Attaches targets with the arguments ``args`` of the command ``attach``.

    ``modes`` has the present mode of each attached target, by id. ``count`` is the approximate number of targets: from
    BULK_THRESHOLD on, rules are copied.
    """

    def __init__(self, args: argparse.Namespace, modes: Mapping[str, str], *, count: int) -> None:
        self._args = args
        self._modes = modes
        self._new_mode: str | None = None
        self._new_mode_lock = threading.Lock()
        rules = {'port': args.metadata_port, 'interfaces': args.internal_interfaces, 'mark': args.mark}
        self._attacher = _attacher(args, _bulk_rules(count, **rules), args.program, args.log_dir)

    def attach(self, target: AttachTarget) -> str:
        """Attach the target without waiting for IPv6. Returns a message to print. Raises MetadataError if it fails."""
        changes = self._attacher.attach(
            target,
            **self._options(target),
            mark=self._args.mark,
            interface=self._args.interface,
            wait_for_ipv6=False,
        )
        outcome = '; '.join([OUTCOMES[self.mode(target)][changes.listener], *changes.in_namespace])
        return f'{target.kind} {target.uuid} is attached in {target.namespace}: {outcome}'

    def settle(self, target: AttachTarget) -> str:
        """Wait until the target's IPv6 address can be used. Returns a message to print, '' if nothing was changed."""
        changes = self._attacher.settle(target, **self._options(target))
        clauses = changes.in_namespace
        if changes.listener:
            clauses = (f'its listener was replaced, because it did not serve {interface_state.ADDRESS}', *clauses)
        return f'{target.kind} {target.uuid}: {"; ".join(clauses)}' if clauses else ''

    def mode(self, target: AttachTarget) -> str:
        """The mode in which to attach ``target``. May start the shared proxy (``_default_mode``)."""
        known = self._args.mode or self._modes.get(target.uuid)
        if not known and not namespaces.exists(target.namespace):
            return SHARED  # the target cannot be attached, so no process is started for it
        return str(known or self._default_mode())

    def _default_mode(self) -> str:
        """Start the shared proxy if needed. Returns the mode of new targets: SHARED, or PROCESS if the start fails."""
        from metadata_wsgi.cli import shared_proxy
        from metadata_wsgi.filters import header_source

        # Threads that attach other new targets wait until keeper and shared proxy have started.
        with self._new_mode_lock:
            if self._new_mode is None:
                path, socket = _paths(self._args)
                files = {'config_file': ','.join(self._args.config_file)} if self._args.config_file else {}
                prefix = config_files.load(files, header_source.OPTS).metadata_header_prefix
                options = [f'--metadata_proxy_socket={socket}', f'--metadata_header_prefix={prefix}']
                if self._args.log_dir:
                    options.append(f'--log_dir={self._args.log_dir}')
                try:
                    shared_proxy.SharedProxy(path, options).ensure_running()
                    self._new_mode = SHARED
                except NetnsError as error:
                    self._new_mode = PROCESS
                    LOG.warning('New targets get mode process, which costs tens of MB for each target: %s', error)
            return self._new_mode

    def _options(self, target: AttachTarget) -> dict[str, Any]:
        interfaces = self._args.internal_interfaces
        return {'mode': self.mode(target), 'port': self._args.metadata_port, 'interfaces': interfaces}


def detach_command(args: argparse.Namespace, *, count: int) -> Callable[[AttachTarget], str]:
    """A function that detaches a target, with the arguments of ``detach``. ``count``: approximate number of targets."""
    attacher = _attacher(args, _bulk_rules(count))

    def detach(target: AttachTarget) -> str:
        return f'{target.kind} {target.uuid} {"is detached" if attacher.detach(target) else "was not attached"}'

    return detach


def concurrent_attaches(modes: Iterable[str]) -> int:
    """How many targets to attach at a time if they have, or may get, these modes."""
    return MAX_CONCURRENT_WAITING if PROCESS in modes else MAX_CONCURRENT_ATTACHES


def run_for_each(
    targets: Sequence[AttachTarget],
    action: Callable[[AttachTarget], str],
    concurrency: int,
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
    with ThreadPoolExecutor(min(concurrency, len(targets)), initializer=namespaces.let_this_thread_enter) as pool:
        return list(pool.map(run, targets))


def has_own_process(path: str, uuid: str) -> bool:
    """Whether the target has a namespace proxy of its own (mode process).

    The process in the pid file may also be a holder. A holder accepts no connections, so it does not count.
    """
    pid = proxy_process.running_pid(state_paths.pid_file(path, uuid), uuid)
    return pid is not None and not proxy_process.is_holder(pid)


def state_path(args: argparse.Namespace) -> str:
    """The directory of pid files and of the keeper's socket."""
    return _paths(args)[0]


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
        keeper=AttachmentsClient(path, list_once=bool(bulk_rules)),
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


def iptables(binary: str | None = None) -> Iptables:
    """An Iptables that reads the rules of all namespaces of this host."""
    return Iptables(SubprocessRunner(), binary=binary, bulk_rules=_bulk_rules(len(namespaces.names())))
