# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi supervise``: run keeper, shared namespace proxy and agent in a container, where no systemd does.

It takes the place of the units: a program that ends is started again after RESTART_DELAY_S. The shared proxy is left
out where ``metadata_one_hop`` is set. Arguments are those of the agent; ``--neutron`` selects
``neutron-metadata-agent-wsgi`` and its defaults. It needs root, because the keeper does; the workers are unprivileged.

A program that ends within FIRST_START_S of its first start has a fault that a new start does not mend, usually in the
configuration: all programs are stopped, and the exit code is 1, so that the container shows it.

SIGTERM  stops the agent and the shared proxy, which finish the requests in progress, then the keeper.
SIGHUP   is passed on to the agent and the shared proxy, which reload.

As process 1 it also collects the exit codes of processes whose parent has ended.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metadata_wsgi import limits
from metadata_wsgi.cli import agent, installed, neutron_agent, verbs
from metadata_wsgi.cli.exit_codes import NOT_WELL, WELL
from metadata_wsgi.cli.root_check import require_root
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.filters import header_source
from metadata_wsgi.net.sd_notify import Notifier

LOG = logging.getLogger(__name__)

RESTART_DELAY_S = 1.0
FIRST_START_S = 5.0
STOP_TIMEOUT_S = limits.GRACEFUL_TIMEOUT_S + 3.0
"""A program that has not ended this long after SIGTERM is killed."""
SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


@dataclass(frozen=True, slots=True)
class Program:
    """One program: ``stops_last`` if the others need it until they have ended, ``reloads`` if it handles SIGHUP."""

    argv: tuple[str, ...]
    stops_last: bool = False
    reloads: bool = True

    @property
    def name(self) -> str:
        """For the log."""
        return ' '.join([os.path.basename(self.argv[0]), *(word for word in self.argv[1:2] if word[0] != '-')])


class Supervisor:
    """Runs ``programs`` until SIGTERM. Blocks the signals of SIGNALS in its process, not in the programs."""

    def __init__(self, programs: Sequence[Program], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_s: dict[Program, float] = dict.fromkeys(programs, 0.0)
        """When each program that does not run is to be started."""
        self._running: dict[int, Program] = {}
        self._started_s: dict[Program, float] = {}
        """When each program was started for the first time."""

    def run(self) -> int:
        """Run until SIGTERM or the failure of a first start; returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        failed = None
        try:
            while failed is None:
                self._start_due()
                received = self._wait(self._next_due_s())
                if received in (signal.SIGTERM, signal.SIGINT):
                    break
                if received == signal.SIGHUP:
                    self._send(signal.SIGHUP, [one for one in self._running.values() if one.reloads])
                failed = self._reap()
        finally:
            self._stop()
        return NOT_WELL if failed else WELL

    def _start_due(self) -> None:
        now_s = self._clock()
        for program in [one for one, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[program]
            # Under nohup SIGHUP is ignored, and a program of a shell script could not handle it.
            pid = os.posix_spawnp(program.argv[0], program.argv, os.environ, setsigmask=(), setsigdef=SIGNALS)
            self._running[pid] = program
            self._started_s.setdefault(program, now_s)
            LOG.info('%s was started with pid %d', program.name, pid)

    def _next_due_s(self) -> float:
        """The time until a program is to be started."""
        return min((max(0.0, due_s - self._clock()) for due_s in self._due_s.values()), default=60.0)

    def _wait(self, timeout_s: float) -> int | None:
        """Wait for a signal; None if there is none in time."""
        received = signal.sigtimedwait(SIGNALS, timeout_s)
        return received.si_signo if received else None

    def _reap(self) -> Program | None:
        """Note the programs that have ended; returns one that failed at its first start."""
        failed = None
        for pid, status in _ended_children():
            program = self._running.pop(pid, None)
            if program is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            reason = f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
            if self._clock() - self._started_s[program] < FIRST_START_S:
                LOG.error('%s ended at its first start: %s. Stopping', program.name, reason)
                failed = program
            else:
                LOG.error('%s ended: %s. It is started again in %g s', program.name, reason, RESTART_DELAY_S)
                self._due_s[program] = self._clock() + RESTART_DELAY_S
        return failed

    def _stop(self) -> None:
        """End all programs, those with ``stops_last`` after the others."""
        for stops_last in (False, True):
            self._send(signal.SIGTERM, [one for one in self._running.values() if one.stops_last is stops_last])
            give_up_s = self._clock() + STOP_TIMEOUT_S
            while any(one.stops_last is stops_last for one in self._running.values()):
                if self._clock() > give_up_s:
                    LOG.error('Not ended after %g s, and killed', STOP_TIMEOUT_S)
                    self._send(signal.SIGKILL, [one for one in self._running.values() if one.stops_last is stops_last])
                    give_up_s = float('inf')
                self._wait(1.0)
                for pid, _ in _ended_children():
                    self._running.pop(pid, None)

    def _send(self, number: int, programs: Sequence[Program]) -> None:
        for pid, program in self._running.items():
            if program in programs:
                os.kill(pid, number)


def _ended_children() -> list[tuple[int, int]]:
    """(pid, wait status) of each child that has ended, also of those that were adopted."""
    found = []
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(child)
    except ChildProcessError:
        pass
    return found


def programs_of(arguments: Sequence[str], *, is_neutron: bool) -> list[Program]:
    """The programs for these arguments of the agent. Raises ConfigError."""
    program = agent.Program(neutron_agent.PROGRAM, neutron_agent.configuration) if is_neutron else agent.QUANTUM
    paths, _ = config_files.split_arguments(arguments)
    global_conf = program.configuration(paths)
    conf = config_files.load(global_conf, [*state_paths.OPTS, *agent.OPTS, *header_source.OPTS])
    path = installed.program
    # The defaults of Neutron's agent are in files too, before those of the command line.
    files = [f'--config-file={file}' for file in filter(None, global_conf.get('config_file', '').split(','))]
    keeper = Program((path('metadata-wsgi'), 'keeper', *files), stops_last=True, reloads=False)
    proxy = Program((
        path('quantum-ns-metadata-proxy'), '--shared', '--nodaemonize', '--verbose',
        '--state_path', conf.state_path,
        '--metadata_proxy_socket', conf.metadata_proxy_socket,
        '--metadata_header_prefix', conf.metadata_header_prefix,
    ))  # fmt: skip
    return [keeper, *([] if conf.metadata_one_hop else [proxy]), Program((path(program.name), *arguments))]


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = verbs.add_parser(
        subparsers,
        'supervise',
        description='Runs in the foreground until SIGTERM, in containers without systemd. Starts keeper, '
        'shared namespace proxy and agent, and starts each again that ends. Where the configuration has '
        'metadata_one_hop = true there is no shared proxy. SIGHUP reloads the agent. If a program fails at its first '
        'start, all are stopped and the exit code is 1.',
    )
    parser.add_argument('--neutron', action='store_true', help='the agent is neutron-metadata-agent-wsgi')
    parser.add_argument('agent_arguments', nargs='*', metavar='-- ARGUMENT', help='arguments of the agent, behind --')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM."""
    require_root()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(process)d %(levelname)s %(name)s %(message)s')
    Notifier.from_environ()
    return Supervisor(programs_of(args.agent_arguments, is_neutron=args.neutron)).run()
