# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi supervise``: runs keeper, shared namespace proxy and agent in a container without systemd.

The command replaces the systemd units. If a program ends, it is started again after RESTART_DELAY_S. If
``metadata_one_hop`` is set, the shared proxy is not started. The arguments are those of the agent. ``--neutron``
selects ``neutron-metadata-agent-wsgi`` and its defaults. The command needs root for the keeper. The workers are
unprivileged.

If a program ends within FIRST_START_S after its first start, a restart would not help: usually the configuration is
wrong. Then all programs are stopped, and the exit code is 1, so that the container fails visibly.

SIGTERM  stops the agent and the shared proxy, which finish the requests in progress. The keeper is stopped last.
SIGHUP   reloads the agent and the shared proxy. A program that is still starting gets SIGHUP when it has a handler.

As process 1 of the container, the command also reaps processes whose parent has ended.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metadata_wsgi import limits
from metadata_wsgi.cli import agent, installed_programs, verbs
from metadata_wsgi.cli.exit_codes import NOT_WELL, WELL
from metadata_wsgi.cli.root_check import require_root
from metadata_wsgi.config import config_files, neutron_files, state_paths
from metadata_wsgi.filters import header_source
from metadata_wsgi.net.sd_notify import Notifier

LOG = logging.getLogger(__name__)

RESTART_DELAY_S = 1.0
FIRST_START_S = 5.0
STOP_TIMEOUT_S = limits.GRACEFUL_TIMEOUT_S + 3.0
"""If a program has not ended this long after SIGTERM, it is killed."""
RELOAD_POLL_S = 0.1
"""While a program does not handle SIGHUP yet, it is checked again after this time."""
SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


@dataclass(frozen=True, slots=True)
class Program:
    """One program. ``stops_last``: it is stopped after all others have ended. ``reloads``: it handles SIGHUP."""

    argv: tuple[str, ...]
    stops_last: bool = False
    reloads: bool = True

    @property
    def name(self) -> str:
        """The name of the program in log lines."""
        return ' '.join([os.path.basename(self.argv[0]), *(word for word in self.argv[1:2] if word[0] != '-')])


class Supervisor:
    """Runs ``programs`` until SIGTERM. Blocks SIGNALS in this process. The programs start with unblocked signals."""

    def __init__(self, programs: Sequence[Program], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_s: dict[Program, float] = dict.fromkeys(programs, 0.0)
        """The time at which each program that does not run must be started."""
        self._running: dict[int, Program] = {}
        self._started_s: dict[Program, float] = {}
        """The time of the first start of each program."""
        self._to_reload: set[int] = set()
        """The pids that must still get SIGHUP."""

    def run(self) -> int:
        """Run until SIGTERM, or until a program fails at its first start. Returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        failed = None
        try:
            while failed is None:
                self._start_due()
                received = self._wait(self._next_due_s())
                if received in (signal.SIGTERM, signal.SIGINT):
                    break
                if received == signal.SIGHUP:
                    self._to_reload = {pid for pid, program in self._running.items() if program.reloads}
                failed = self._reap()
                self._reload()
        finally:
            self._stop()
        return NOT_WELL if failed else WELL

    def _start_due(self) -> None:
        now_s = self._clock()
        for program in [one for one, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[program]
            # setsigdef: nohup ignores SIGHUP, and a shell script cannot trap a signal that it inherits as ignored.
            pid = os.posix_spawnp(program.argv[0], program.argv, os.environ, setsigmask=(), setsigdef=SIGNALS)
            self._running[pid] = program
            self._started_s.setdefault(program, now_s)
            LOG.info('%s was started with pid %d', program.name, pid)

    def _next_due_s(self) -> float:
        """Seconds until a program must be started or reloaded; 60 if there is none."""
        starts_s = [max(0.0, due_s - self._clock()) for due_s in self._due_s.values()]
        return min([*starts_s, RELOAD_POLL_S if self._to_reload else 60.0])

    def _wait(self, timeout_s: float) -> int | None:
        """Wait for one of SIGNALS. Returns its number, or None after ``timeout_s``."""
        received = signal.sigtimedwait(SIGNALS, timeout_s)
        return received.si_signo if received else None

    def _reap(self) -> Program | None:
        """Schedule the restart of ended programs. Returns a program that failed at its first start, else None."""
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

    def _reload(self) -> None:
        """Send SIGHUP to the programs that must get it and handle it. SIGHUP would end a program without a handler."""
        self._to_reload &= self._running.keys()  # a program that has ended reads its configuration at its next start
        for pid in [one for one in self._to_reload if _handles(one, signal.SIGHUP)]:
            os.kill(pid, signal.SIGHUP)
            self._to_reload.remove(pid)

    def _stop(self) -> None:
        """Stop all programs. Those with ``stops_last`` are stopped when the others have ended."""
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


def _handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal."""
    for line in Path(f'/proc/{pid}/status').read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith('SigCgt:'):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _ended_children() -> list[tuple[int, int]]:
    """(pid, wait status) of each child that has ended, including orphans that process 1 adopted."""
    found = []
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(child)
    except ChildProcessError:
        pass
    return found


def programs_of(arguments: Sequence[str], *, is_neutron: bool) -> list[Program]:
    """The programs for these arguments of the agent. Raises ConfigError if the configuration is wrong."""
    program = agent.Program(neutron_files.PROGRAM, neutron_files.configuration) if is_neutron else agent.QUANTUM
    paths, _ = config_files.split_arguments(arguments)
    global_conf = program.configuration(paths)
    conf = config_files.load(global_conf, [*state_paths.OPTS, *agent.OPTS, *header_source.OPTS])
    path = installed_programs.path
    # With --neutron the files of Neutron's defaults come first, then the files of the command line.
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
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'supervise',
        description='Runs in the foreground until SIGTERM, in containers without systemd. Starts keeper, '
        'shared namespace proxy and agent. If one of them ends, it is started again. With metadata_one_hop = true in '
        'the configuration, the shared proxy is not started. SIGHUP reloads agent and shared proxy. If a program fails '
        'at its first start, all programs are stopped and the exit code is 1.',
    )
    parser.add_argument('--neutron', action='store_true', help='the agent is neutron-metadata-agent-wsgi')
    parser.add_argument('agent_arguments', nargs='*', metavar='-- ARGUMENT', help='arguments of the agent, after --')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM."""
    require_root()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(process)d %(levelname)s %(name)s %(message)s')
    Notifier.from_environ()
    return Supervisor(programs_of(args.agent_arguments, is_neutron=args.neutron)).run()
