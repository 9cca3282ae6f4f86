# SPDX-License-Identifier: Apache-2.0
"""gunicorn's arbiter, the process that is called master elsewhere: handles signals, starts and stops workers.

SIGHUP  opens the log files again. It reads the paste file, the options of its filters, ``metadata_workers`` and
        ``metadata_connections`` again, and replaces the workers. The former workers finish their requests. If the
        configuration is wrong, the error is logged and the former workers stay. A restart is needed for all other
        options: the command line, ``metadata_one_hop``, ``allow_any_destination``, and the options of the listeners,
        of user and group, and of logging.
SIGTERM stops accepting, finishes the requests in progress (within ``limits.GRACEFUL_TIMEOUT_S``) and ends.
SIGUSR1 executes the installed version of the program in this process (``reexec``). It also opens the log files again.
        If the installed version cannot load the configuration, an error is logged and this version continues.
SIGUSR2 writes the file of ``metadata-wsgi report`` into the state directory.

When the first worker serves, the master notifies systemd (``net.sd_notify``) that the service has started. It also
sends the number of workers that serve, and the error of a failed reload. While at least one worker sends heartbeats
(``progress``), the master feeds systemd's watchdog once a second.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gunicorn.arbiter
from gunicorn.errors import HaltServer

from metadata_wsgi import limits
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.server import config_check, log_files, reexec, worker_replacement
from metadata_wsgi.server.worker import STOP_SIGNALS
from metadata_wsgi.server.worker_replacement import WorkerState
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from metadata_wsgi.server.master import Server

LOG = logging.getLogger(__name__)


class Arbiter(gunicorn.arbiter.Arbiter):
    """The master process. At a reload, and when the workers' user changes, former workers stay until new ones serve."""

    def __init__(self, app: Server) -> None:
        super().__init__(app)
        self._is_stopping = False
        self._reload_error = ''
        # ``age`` of the last worker that is to be replaced.
        self._former_age = 0
        self._is_reloading = False
        self._has_served = bool(app.former_workers)
        # Until this monotonic time no worker is started.
        self._next_start_s = 0.0
        self._fork_log = Throttle(limits.LOG_INTERVAL_S)
        # True keeps gunicorn from removing the files of unix sockets. It could remove another program's file.
        self.systemd = True
        # (device, inode) of the files of unix sockets, by path.
        self._socket_files: dict[str, tuple[int, int]] = {}

    def start(self) -> None:
        """Called by gunicorn to open the listeners."""
        super().start()
        for listener in self.LISTENERS:
            # gunicorn makes it inheritable. A report that hangs would keep the socket open.
            listener.set_inheritable(False)
            path = listener.getsockname()
            if isinstance(path, str):
                with suppress(OSError):
                    self._socket_files[path] = _file_id(path)

    def init_signals(self) -> None:
        """Called by gunicorn to set the signal handlers."""
        super().init_signals()
        reexec.unblock_signals()

    def signal(self, sig: int, frame: Any) -> None:
        """The signal handler. gunicorn only queues a signal, but a stop signal must cancel a reload at once."""
        if sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._is_stopping = True
        super().signal(sig, frame)

    def manage_workers(self) -> None:
        """Called by gunicorn each second. Forks missing workers. Stops replaced and surplus workers."""
        if self.app.update_identity():
            LOG.info('The workers are replaced: they run as another user')
            self._former_age = self.worker_age
        states = [WorkerState(pid, worker.age, _is_ready(worker)) for pid, worker in self.WORKERS.items()]
        planned = worker_replacement.changes(states, wanted=self.num_workers, former_age=self._former_age)
        if time.monotonic() >= self._next_start_s:
            self._start_workers(planned.start)
        for pid in planned.stop:
            self.kill_worker(pid, signal.SIGTERM)
        if self._is_reloading and all(worker.age > self._former_age for worker in self.WORKERS.values()):
            self._is_reloading = False
            LOG.info('Reloaded')
        self._notify()

    def _start_workers(self, count: int) -> None:
        """Fork ``count`` workers. Without memory, processes or descriptors for one, the next call tries again."""
        try:
            for _ in range(count):
                self.spawn_worker()
        except OSError as error:
            if os.getpid() != self.pid:
                # In the new worker, which is at its end.
                raise
            self.app.on_fork_failed(self.worker_age)
            if self._fork_log.allow():
                LOG.error('A worker cannot be started: %s', error)

    def reap_workers(self) -> None:
        """Called by gunicorn to remove ended workers. If a worker could not load, another one is started after a pause.

        gunicorn's own method raises HaltServer then, which would also end the workers that serve. Here the master ends
        only if no worker has ever served, or if no worker is left and no watchdog of systemd restarts the service.
        """
        before = dict(self.WORKERS)
        self._has_served |= any(_is_ready(worker) for worker in before.values())
        while True:
            try:
                super().reap_workers()
                return
            except HaltServer:
                # gunicorn has not done this for the last worker that it reaped.
                for pid in before.keys() - self.WORKERS.keys():
                    before[pid].tmp.close()
                    self.cfg.child_exit(self, before[pid])
                self._next_start_s = time.monotonic() + limits.WORKER_START_RETRY_S
                others = len(self.WORKERS) + len(reexec.running(self.app.former_workers))
                continues = self._has_served and (others or self.app.notifier.has_watchdog)
                if not continues and not self._is_stopping:
                    raise
                if not self._is_stopping:
                    LOG.error(
                        'A new worker could not load. Other workers: %d. '
                        'Another one is started in %.0f s, or at a reload',
                        others,
                        limits.WORKER_START_RETRY_S,
                    )

    def _notify(self) -> None:
        """Send systemd the number of workers that serve, and progress if one serves, also one of the former program."""
        now_s = time.monotonic()
        heartbeats = [worker.tmp.last_update() for worker in self.WORKERS.values()]
        serving = sum(has_fresh_heartbeat(last_s, now_s) for last_s in heartbeats)
        if serving >= self.num_workers and self.app.former_workers:
            LOG.info('The workers of the former program end')
            self._end_former_workers()
        status = f'{serving} of {self.num_workers} workers serve, version {self.app.version}'
        if self._reload_error:
            status += f'; not reloaded: {self._reload_error}'
        if serving:
            self.app.notifier.ready(status)
            self.app.notifier.progress()
        else:
            self.app.notifier.status(status)
            if reexec.running(self.app.former_workers):
                self.app.notifier.progress()

    def _continue_check(self) -> bool:
        """Called during the check before a reload, which may take a minute. Returns False if the master must stop.

        Does the work of gunicorn's loop, so that a worker that ends or hangs meanwhile is replaced.
        """
        if not self._is_stopping:
            # The configuration that is checked now may be the corrected one.
            with suppress(HaltServer):
                self.reap_workers()
            self.murder_workers()
            self.manage_workers()
        return not self._is_stopping

    def spawn_worker(self) -> None:
        """Called by gunicorn to fork a worker. Stop signals to the worker are blocked until it has its own handlers.

        A new worker starts with the master's signal handlers, which only queue a signal. Without the block a stop
        signal would be lost: the worker would serve until it is killed, and its requests would be cut off.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def reload(self) -> None:
        """Called by gunicorn at SIGHUP: check the configuration and start new workers. Former workers serve meanwhile.

        gunicorn's own method would stop the former workers at once and wait for their end.
        """
        log_files.reopen()
        try:
            settings = self.app.check_config_in_child(is_cancelled=lambda: not self._continue_check())
        except MetadataError as error:
            LOG.error('Not reloaded, the former pipeline and options stay in force: %s', error)
            self._reload_error = str(error)
            return
        self._reload_error = ''
        # Not read again: the file may have changed since the check.
        self.app.use(settings)
        self.setup(self.app)
        self._former_age = self.worker_age
        self._next_start_s = 0.0
        self._is_reloading = True
        self.manage_workers()

    def stop(self, graceful: bool = True) -> None:
        """Called by gunicorn to end the workers."""
        self._is_stopping = True
        self.app.notifier.stopping()
        former, limit_s = self.app.former_workers, time.monotonic() + self.cfg.graceful_timeout
        self._end_former_workers()
        if not self.app.keeps_sockets:
            self._remove_socket_files()
        super().stop(graceful)
        # gunicorn does not know the former workers. When the master ends, systemd kills workers that still run.
        while graceful and reexec.running(former) and time.monotonic() < limit_s:
            time.sleep(0.1)

    def _remove_socket_files(self) -> None:
        for path, file_id in self._socket_files.items():
            with suppress(OSError):
                if _file_id(path) == file_id:
                    os.unlink(path)

    def _end_former_workers(self) -> None:
        reexec.end(self.app.former_workers)
        self.app.former_workers = []

    def handle_usr1(self) -> None:
        """Called by gunicorn at SIGUSR1: execute the installed program in this process. This reopens the log files."""
        if self._is_stopping:
            # The stop signal is queued, and the queue ends with this program.
            return
        if not self.app.socket_name:
            LOG.warning('SIGUSR1 does nothing here: restart the program; SIGHUP opens the log files again')
            return
        if not self._can_start_installed_program():
            return
        LOG.info('The installed program is started in this process; the workers serve until new ones do')
        (listener,) = self.LISTENERS
        self.app.notifier.progress()
        # If an earlier SIGUSR1 is not complete, the workers of the program before this one still serve.
        workers = [*self.app.former_workers, *self.WORKERS]
        try:
            reexec.execute_again({self.app.socket_name: listener.fileno()}, workers, self.app.notifier.environ)
        except OSError as error:
            LOG.error('The installed program cannot be executed, this one continues: %s', error)

    def _can_start_installed_program(self) -> bool:
        try:
            config_check.run_in_child(reexec.check_installed_program, lambda: not self._continue_check())
        except MetadataError as error:
            if not self._is_stopping:
                LOG.error('The installed program cannot start, this one continues: %s', error)
            return False
        return not self._is_stopping

    def handle_usr2(self) -> None:
        """Called by gunicorn at SIGUSR2: write a report. gunicorn's own method would start a second master."""
        try:
            self.app.write_report()
        except OSError as error:
            LOG.error('The report cannot be written: %s', error)


def has_fresh_heartbeat(last_s: float, now_s: float) -> bool:
    """Whether a worker with its last heartbeat at ``last_s`` serves. Both times are in seconds.

    ``last_s`` is a time of the monotonic clock. Before the first heartbeat it is the time of day, which is much later
    than ``now_s``.
    """
    return 0 <= now_s - last_s < limits.HEARTBEAT_FRESH_S


def _file_id(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _is_ready(worker: Any) -> bool:
    """Whether a worker has sent its first heartbeat, so it serves.

    A heartbeat sets the modification time of a file to the time of the monotonic clock. A new file has the time of day,
    which is later.
    """
    try:
        return bool(worker.tmp.last_update() <= time.monotonic())
    except (OSError, ValueError):
        return False
