# SPDX-License-Identifier: Apache-2.0
"""Makes the process of a mode listen for a router or network, and stops the process of the former mode.

In the mode PROCESS a namespace proxy for this target alone listens. If it already runs in this namespace and on this
port, it is adopted, even if another program started it. Any other proxy of this id is replaced. For example, a proxy in
a deleted namespace still runs, but no instance can reach it.

In the modes SHARED and ONE_HOP the keeper listens (``KeeperListeners``). Changes of the mode:

- From a process to the keeper: the listening socket is copied before the process is stopped. No connection is refused.
- Between SHARED and ONE_HOP: the socket stays. No connection is refused.
- From the keeper to a process: the socket is copied to the new process. The keeper closes its copy when the process
  serves. If copying fails, the keeper closes the socket first, and connections are refused for about a second. If the
  process does not start at all, the keeper listens again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns import namespaces, proxy_process
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.runner import Runner
from metadata_wsgi.netns.target import NETWORK, PROCESS, AttachTarget, KeeperEntry

LOG = logging.getLogger(__name__)

POLL_S = 0.02


class KeeperListeners(Protocol):
    """The keeper's listening sockets. Implemented by ``metadata_wsgi.keeper.attachments_client.AttachmentsClient``.

    Every method raises NetnsError if the keeper refuses or does not respond.
    """

    def attach(
        self, target: AttachTarget, mode: str, port: int, hosts: Sequence[str], taken: Sequence[socket.socket] = ()
    ) -> bool:
        """Make the keeper listen on ``hosts``, with the sockets ``taken`` or new ones. Returns whether any changed."""

    def entry(self, target: AttachTarget) -> KeeperEntry | None:
        """The keeper's listeners of ``target``; None if there are none."""

    def close(self, target: AttachTarget, mode: str, port: int, host: str) -> None:
        """Make the keeper close the listener on ``host``."""

    def detach(self, target: AttachTarget) -> bool:
        """Make the keeper close all listeners of ``target``. Returns whether there were any."""


class ModeChanger:
    """Starts and stops the listener of a target. Without ``keeper`` only the mode PROCESS is possible.

    ``keeper_pid`` returns the keeper's pid, None if unknown. Threads may share a ModeChanger.
    """

    def __init__(
        self,
        runner: Runner,
        proxy: ProxyCommand,
        keeper: KeeperListeners | None,
        keeper_pid: Callable[[], int | None],
        *,
        start_timeout_s: float,
        stop_timeout_s: float,
        close_timeout_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._runner = runner
        self._proxy = proxy
        self._keeper = keeper
        self._keeper_pid = keeper_pid
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._close_timeout_s = close_timeout_s
        self._clock = clock
        self._sleep = sleep

    def serve(self, target: AttachTarget, mode: str, port: int, hosts: Sequence[str]) -> bool:
        """Make the process of ``mode`` listen on ``port`` of ``hosts``. Returns whether anything changed.

        Raises NetnsError if the process cannot listen.
        """
        if mode == PROCESS:
            if self._move_from_keeper_to_process(target, port, hosts):
                return True
            if self._close_in_keeper(target):
                self._wait_for_workers(target, port)
            return self._start_process(target, port, hosts)
        if self._keeper is None:
            raise NetnsError(f'mode {mode} needs the keeper')
        copies = proxy_process.copy_proxy_listeners(self._proxy.pid_file(target.uuid), target.uuid, port)
        try:
            usable = _in_current_namespace(target, copies)
            changed = self._keeper.attach(target, mode, port, hosts, usable)
        finally:
            for copy in copies:
                copy.close()
        if changed:
            LOG.info('%s %s: is now served in mode %s', target.kind, target.uuid, mode)
        pid = proxy_process.running_pid(self._proxy.pid_file(target.uuid), target.uuid)
        if pid is not None and proxy_process.is_holder(pid):
            # The holder is not stopped: when it ends, the keeper closes the sockets. The agent that started it ends it.
            return changed
        return changed | self.stop_process(target)

    def detach_in_keeper(self, target: AttachTarget) -> bool:
        """Make the keeper close the listeners of ``target``. Returns whether there were any.

        Raises NetnsError if the keeper does not respond.
        """
        return self._keeper is not None and self._keeper.detach(target)

    def entry_in_keeper(self, target: AttachTarget) -> KeeperEntry | None:
        """The keeper's listeners of ``target``; None if there are none or the keeper does not respond."""
        try:
            return self._keeper.entry(target) if self._keeper else None
        except NetnsError:
            return None

    def listen_again(self, target: AttachTarget, former: KeeperEntry) -> None:
        """Make the keeper listen as it did in ``former``, after the start of a process has failed."""
        try:
            if self._keeper and self._keeper.attach(target, former.mode, former.port, former.hosts):
                LOG.warning('%s %s: is served in mode %s again', target.kind, target.uuid, former.mode)
        except NetnsError as error:
            LOG.warning('%s %s: the keeper does not listen again: %s', target.kind, target.uuid, error)

    def serve_again(self, target: AttachTarget, mode: str, port: int, hosts: Sequence[str]) -> bool:
        """Like ``serve``, but first closes sockets that must be opened again.

        In mode PROCESS the process is stopped. In the other modes the keeper closes a network's listener on
        the last of ``hosts``, the IPv6 address.
        """
        if mode == PROCESS:
            self.stop_process(target)
        elif self._keeper and target.kind == NETWORK:
            self._keeper.close(target, mode, port, hosts[-1])
        return self.serve(target, mode, port, hosts)

    def stop_process(self, target: AttachTarget) -> bool:
        """Stop the target's own process, a namespace proxy or a holder. Returns whether there was one."""
        return proxy_process.stop(self._proxy.pid_file(target.uuid), target.uuid, timeout_s=self._stop_timeout_s)

    def close_former_port(self, target: AttachTarget, mode: str, port: int, former: int | None) -> None:
        """Close the keeper's socket on the port ``former`` if ``port`` differs from it.

        Called before the rules of ``former`` are removed. Raises NetnsError if the keeper does not respond: then a
        worker may still serve ``former``, and send its copy of the socket to the next keeper.
        """
        if mode != PROCESS or self._keeper is None or former in (None, port):
            # In the modes SHARED and ONE_HOP the keeper itself replaces the socket.
            return
        # Even if the target's own process listens, a worker may have a copy of the keeper's socket: the keeper may have
        # ended while it moved the socket to the process.
        if proxy_process.is_port_open(target.namespace, former):
            self._keeper.detach(target)

    def _move_from_keeper_to_process(self, target: AttachTarget, port: int, hosts: Sequence[str]) -> bool:
        """Start a process with copies of the keeper's sockets, so that no connection is refused.

        Returns False if the sockets cannot be copied, or the process cannot use them.
        """
        keeper_pid = self._keeper_pid()
        copies = proxy_process.copy_keeper_listeners(keeper_pid, target.namespace, port) if keeper_pid else []
        try:
            if not copies or len(copies) != len(hosts):
                return False
            started = self._start_process(target, port, hosts, copies)
        except NetnsError as error:
            # ``--program`` may be another program, without the option --listen_fd.
            LOG.warning('%s %s: restarted, connections are refused meanwhile: %s', target.kind, target.uuid, error)
            self.stop_process(target)
            return False
        finally:
            for copy in copies:
                copy.close()
        self._close_in_keeper(target)
        return started

    def _wait_for_workers(self, target: AttachTarget, port: int) -> None:
        """Wait until the workers have closed their copies of the keeper's socket, at most CLOSE_TIMEOUT_S.

        If the attach fails later, ``Attacher._undo`` must not take such a copy for a listener that needs the rules.
        """
        deadline_s = self._clock() + self._close_timeout_s
        while proxy_process.is_port_open(target.namespace, port) and self._clock() < deadline_s:
            self._sleep(POLL_S)

    def _close_in_keeper(self, target: AttachTarget) -> bool:
        """Make the keeper close the listeners of ``target``. Returns whether there were any."""
        try:
            return self.detach_in_keeper(target)
        except NetnsError as error:
            # The keeper may still have a socket. Then the port is in use, and the new process reports this.
            LOG.warning('%s %s: %s', target.kind, target.uuid, error)
            return False

    def _start_process(
        self, target: AttachTarget, port: int, hosts: Sequence[str], listeners: Sequence[socket.socket] = ()
    ) -> bool:
        """Start the proxy if it does not run, and wait until it listens. Returns whether it was started.

        If ``listeners`` are given, the new proxy serves these sockets and opens none. If the proxy does not listen
        in time, stops it and raises NetnsError.
        """

        def serves(pid: int) -> bool:
            is_here = namespaces.name_of(pid) == target.namespace and proxy_process.listens(pid, port)
            return is_here and not proxy_process.is_holder(pid)

        def spawn(_pid_file: str) -> None:
            argv, descriptors = self._proxy.argv(target, port, hosts), [one.fileno() for one in listeners]
            if descriptors:
                argv += [f'--listen_fd={number}' for number in descriptors]
                self._runner(argv, namespace=target.namespace, pass_fds=descriptors)
            else:
                self._runner(argv, namespace=target.namespace)

        pid_file = self._proxy.pid_file(target.uuid)
        started = proxy_process.ensure_running(pid_file, target.uuid, spawn, is_wanted=serves)
        deadline_s = self._clock() + self._start_timeout_s
        while started:
            pid = None
            # If descriptors are exhausted, the next check may succeed. A new process is never left unchecked.
            with contextlib.suppress(NetnsError):
                pid = proxy_process.running_pid(pid_file, target.uuid)
                if pid is not None and serves(pid):
                    break
            if self._clock() >= deadline_s:
                state = f'pid {pid} does not listen on port {port}' if pid else f'no process, pid file {pid_file}'
                # Otherwise the process could listen later, after the rules have been removed.
                self.stop_process(target)
                raise NetnsError(
                    f'{self._proxy.program} for {target.kind} {target.uuid} did not start within '
                    f'{self._start_timeout_s:g} s ({state}); see its log'
                )
            self._sleep(POLL_S)
        if started:
            LOG.info('%s %s: a proxy was started', target.kind, target.uuid)
        return started


def _in_current_namespace(target: AttachTarget, sockets: Sequence[socket.socket]) -> list[socket.socket]:
    """Those ``sockets`` that are in the target's namespace, and not in a deleted namespace of the same name."""
    return [sock for sock in sockets if namespaces.identity_of(sock) == namespaces.identity(target.namespace)]
