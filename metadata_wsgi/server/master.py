# SPDX-License-Identifier: Apache-2.0
"""gunicorn's master process: serves open listeners, forks workers and handles signals.

SIGHUP  opens the log files again. It reads the paste file, the options of its filters, ``metadata_workers`` and
        ``metadata_connections`` again, and replaces the workers. The former workers finish their requests. If the
        configuration is wrong, the error is logged and the former workers stay. A restart is needed for all other
        options: the command line, ``metadata_one_hop``, ``allow_any_destination``, and the options of the listeners,
        of user and group, and of logging.
SIGTERM stops accepting, finishes the requests in progress (within ``limits.GRACEFUL_TIMEOUT_S``) and ends.
SIGUSR1 executes the installed version of the program in this process (``reexec``). It also opens the log files again.
SIGUSR2 writes the file of ``metadata-wsgi report`` into the state directory.

The master notifies systemd (``net.sd_notify``) that the service has started when the first worker serves. It also
sends the number of workers that serve, and the error of a failed reload. While a worker sends heartbeats
(``progress``), the master feeds systemd's watchdog once a second.

Workers use gevent. A request that waits for Neutron, for Nova or for a slow client costs a few kilobytes and no thread.

The master keeps root's privileges, if it has them. It reads the configuration and forks workers, but handles no
request. A worker loads the pipeline as root, then drops all privileges (``privileges``), then accepts connections. So
files with secrets and keys may be readable for root only.

The master opens the log files as root too (``log_files``). Send SIGHUP after logrotate has moved a log file. If a log
handler rotates its file itself (oslo.log's ``log_rotation_type``), the program does not start.

All settings of gunicorn that would accept malformed requests are off.
"""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from metadata_wsgi import limits
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.failures.shared_memory import FailureMemory
from metadata_wsgi.failures.worker_memories import WorkerMemories
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.privileges import drop
from metadata_wsgi.privileges.identity import Identity
from metadata_wsgi.server import log_files, reexec, worker_replacement
from metadata_wsgi.server.worker import STOP_SIGNALS, MetadataWorker, Stoppable, WorkerOptions
from metadata_wsgi.server.worker_replacement import WorkerState

LOG = logging.getLogger(__name__)

STRICT: dict[str, Any] = {
    # A header name with an underscore is dropped: its environ key is the same as with a hyphen. No peer may set the
    # path or the scheme.
    'header_map': 'drop',
    'forwarder_headers': '',
    'forwarded_allow_ips': '127.0.0.1',
    'secure_scheme_headers': {},
    # Requests that are malformed by RFC 9112 are not repaired, because two servers may repair them differently.
    'permit_obsolete_folding': False,
    'strip_header_spaces': False,
    'casefold_http_method': False,
    'permit_unconventional_http_method': False,
    'permit_unconventional_http_version': False,
    'proxy_protocol': 'off',
    'limit_request_line': 8190,
    'limit_request_fields': 100,
    'limit_request_field_size': 16380,
}
"""The settings of gunicorn for reading requests."""

PRELOAD_MODULES = (
    *('gevent.resolver.thread', 'gevent.resolver._addresses', 'gevent.threadpool', 'gevent._threading', 'gevent.util'),
    *('gevent.ssl', 'gevent.subprocess', 'gevent.threading', 'gevent.selectors', 'gevent.signal', 'gevent.local'),
    *('concurrent.futures.thread', 'encodings.idna', 'netrc', 'stringprep'),
)
"""Modules that are otherwise imported by gevent's patching, or by libraries during the first request.

The master imports them before it forks, so that the workers share their memory. A worker may be unable to import them
later: its user may have no access to Python's directory, and after an upgrade the files there are of another version.
Some are private modules of gevent. A module that the installed version does not have is skipped.
"""


class Log(Logger):
    """Sends gunicorn's messages to the root logger."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.NOTSET)
        self.access_log.propagate = False


class Server(BaseApplication):
    """Serves the application that ``load`` returns on ``listeners``. Each worker calls ``load`` itself.

    ``load``: raises MetadataError if the configuration is wrong. A child process calls it first, as a check.
    ``settings``: returns gunicorn's ``workers``, ``backlog`` and ``worker_connections``. Called at start and SIGHUP.
    ``on_worker_start``: called in each new worker, right after the fork.
    ``on_ready``: called in the master when the listeners are open, before the first worker is forked.
    ``identity``: returns the user of the workers, or None if they only drop privileges. Called each second. If the user
    changes, the workers are replaced.
    ``on_config_checked``: called in the child process after ``load``. It may log warnings.
    ``on_first_worker``: called in one worker after each start and SIGHUP, with the application as argument. The worker
    has already dropped its privileges. The function must return at once.
    ``notifier``: notifies systemd.
    ``keeps_sockets``: systemd has copies of the sockets, so the files of unix sockets are not deleted at the end.
    ``socket_name``: the listener's name for ``reexec``; there must be one listener only. With '' SIGUSR1 does nothing.
    ``write_report``: called in the master at SIGUSR2. It must return at once.
    ``keeper``, ``any_destination``, ``program``, ``on_serve``: see WorkerOptions.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        listeners: Sequence[socket.socket],
        *,
        settings: Callable[[], dict[str, Any]],
        name: str,
        on_worker_start: Callable[[], None] = lambda: None,
        keeper: tuple[str, str] | None = None,
        on_ready: Callable[[], None] = lambda: None,
        identity: Callable[[], Identity | None] = lambda: None,
        any_destination: bool = False,
        on_config_checked: Callable[[], None] = lambda: None,
        on_first_worker: Callable[[Any], None] = lambda app: None,
        notifier: Notifier | None = None,
        program: str = 'agent',
        on_serve: Callable[[Any], Stoppable | None] = lambda app: None,
        write_report: Callable[[], object] | None = None,
        keeps_sockets: bool = False,
        socket_name: str = '',
    ) -> None:
        log_files.refuse_rotating_handlers()
        self._load = load
        self._bind = [f'fd://{listener.detach()}' for listener in listeners]
        self._settings = settings
        self._name = name
        self._on_worker_start = on_worker_start
        self.worker_options = WorkerOptions(
            keeper=keeper, any_destination=any_destination, program=program, on_serve=on_serve
        )
        self._on_ready = on_ready
        self._on_config_checked = on_config_checked
        self._on_first_worker = on_first_worker
        self.write_report = write_report
        self._failure_memories = WorkerMemories()
        self.failure_memory: FailureMemory | None = None
        """In a worker: the shared memory to which the worker writes its recent failures. None in the master."""
        self._identity = identity
        self.notifier = notifier or Notifier()
        self.keeps_sockets = keeps_sockets
        self.socket_name = socket_name
        self.former_workers = reexec.former_workers()
        self.version = version('metadata_wsgi')
        self._worker_identity = identity()
        super().__init__(prog=name)

    def load_config(self) -> None:
        """Called by gunicorn at start and on SIGHUP."""
        self._first_worker_age: int | None = None
        settings = {
            'bind': self._bind,
            'proc_name': self._name,
            'worker_class': MetadataWorker,
            'timeout': limits.WORKER_TIMEOUT_S,
            'graceful_timeout': limits.GRACEFUL_TIMEOUT_S,
            'logger_class': Log,
            'control_socket_disable': True,
            'preload_app': False,
            **STRICT,
            'pre_fork': self._before_fork,
            'post_fork': self._after_fork,
            'child_exit': lambda arbiter, worker: self._failure_memories.end(worker.age),
            'post_worker_init': self._on_worker_loaded,
            'when_ready': self._on_listening,
            **self._settings(),
        }
        for key, value in settings.items():
            self.cfg.set(key, value)

    def load(self) -> Any:
        """Called by gunicorn in each worker."""
        return self._load()

    def _on_listening(self, arbiter: Any) -> None:
        # Before the first worker is forked: workers share the memory that they do not change.
        for name in PRELOAD_MODULES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                LOG.debug('Not loaded before the workers are forked: %s', error)
        _freeze_gc()
        self._on_ready()

    def _before_fork(self, arbiter: Any, worker: Any) -> None:
        # ``age`` is the number that gunicorn gives to each worker.
        if self._first_worker_age is None:
            self._first_worker_age = worker.age
        self._failure_memories.add(worker.age)

    def _after_fork(self, arbiter: Any, worker: Any) -> None:
        self.failure_memory = self._failure_memories.take(worker.age)
        self._on_worker_start()

    def _on_worker_loaded(self, worker: Any) -> None:
        _tune_gc()
        _drop_privileges(worker, self._worker_identity)
        if worker.age == self._first_worker_age:
            self._on_first_worker(worker.wsgi)

    def update_identity(self) -> bool:
        """Determine the user of new workers again. Returns whether it has changed."""
        before, self._worker_identity = self._worker_identity, self._identity()
        return before != self._worker_identity

    def check_config_in_child(self, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Load the application in a child process. Raises MetadataError if this fails or takes too long.

        Also raises MetadataError when ``is_cancelled()`` returns True. The master itself must not import the libraries
        of the application: its workers must import them after gevent's patching.
        """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read_end)
            try:
                self._settings()
                self._load()
                self._on_config_checked()
            except MetadataError as error:
                os.write(write_end, str(error).encode())
            except BaseException as error:
                LOG.exception('The pipeline cannot be loaded')
                os.write(write_end, f'the pipeline cannot be loaded: {type(error).__name__}: {error}'.encode())
            finally:
                os._exit(0)
        os.close(write_end)
        message = _read_until_end(read_end, limits.CONFIG_CHECK_TIMEOUT_S, is_cancelled)
        if message is None:
            # No wait: a process in an uninterruptible system call (NFS) does not end. The master reaps it later.
            os.kill(pid, signal.SIGKILL)
            if is_cancelled():
                raise MetadataError('the server is stopping')
            raise MetadataError(f'the pipeline did not load within {limits.CONFIG_CHECK_TIMEOUT_S:.0f} s')
        os.waitpid(pid, 0)
        if message:
            raise MetadataError(message)

    def run(self) -> None:
        """Serve until SIGTERM."""
        drop.no_core_files()
        _Arbiter(self).run()


class _Arbiter(Arbiter):
    """gunicorn's master process. After a reload, or a change of the workers' user, it starts new workers first.

    The former workers serve until the new workers are ready.
    """

    def __init__(self, app: Server) -> None:
        super().__init__(app)
        self._is_stopping = False
        self._reload_error = ''
        # ``age`` of the last worker that is to be replaced.
        self._former_age = 0
        self._is_reloading = False
        # If True, gunicorn does not remove the files of unix sockets when it ends.
        self.systemd = app.keeps_sockets

    def signal(self, sig: int, frame: Any) -> None:
        """The signal handler. gunicorn only queues a signal, but a reload in progress must be cancelled at once."""
        if sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._is_stopping = True
        super().signal(sig, frame)

    def manage_workers(self) -> None:
        """Called by gunicorn each second. Forks missing workers. Stops workers that are replaced or too many."""
        if self.app.update_identity():
            LOG.info('The workers are replaced: they run as another user')
            self._former_age = self.worker_age
        states = [WorkerState(pid, worker.age, _is_ready(worker)) for pid, worker in self.WORKERS.items()]
        planned = worker_replacement.changes(states, wanted=self.num_workers, former_age=self._former_age)
        for _ in range(planned.start):
            self.spawn_worker()
        for pid in planned.stop:
            self.kill_worker(pid, signal.SIGTERM)
        if self._is_reloading and all(worker.age > self._former_age for worker in self.WORKERS.values()):
            self._is_reloading = False
            LOG.info('Reloaded')
        self._notify()

    def _notify(self) -> None:
        """Send systemd the number of workers that serve. If at least one serves, also send READY and progress."""
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

    def _continue_check(self) -> bool:
        """Called during the check before a reload, which may take a minute. Returns False if the master must stop."""
        self._notify()
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
            self.app.check_config_in_child(is_cancelled=lambda: not self._continue_check())
        except MetadataError as error:
            LOG.error('Not reloaded, the former pipeline and options stay in force: %s', error)
            self._reload_error = str(error)
            return
        self._reload_error = ''
        self.app.reload()
        self.setup(self.app)
        self._former_age = self.worker_age
        self._is_reloading = True
        self.manage_workers()

    def stop(self, graceful: bool = True) -> None:
        """Called by gunicorn to end the workers."""
        self.app.notifier.stopping()
        self._end_former_workers()
        super().stop(graceful)

    def _end_former_workers(self) -> None:
        reexec.end(self.app.former_workers)
        self.app.former_workers = []

    def handle_usr1(self) -> None:
        """Called by gunicorn at SIGUSR1: execute the installed program in this process, which opens its log files."""
        if not self.app.socket_name:
            LOG.warning('SIGUSR1 does nothing here: restart the program; SIGHUP opens the log files again')
            return
        LOG.info('The installed program is started in this process; the workers serve until new ones do')
        (listener,) = self.LISTENERS
        self.app.notifier.progress()
        # If an earlier SIGUSR1 is not complete, the workers of the program before that one still serve.
        workers = [*self.app.former_workers, *self.WORKERS]
        reexec.execute_again({self.app.socket_name: listener.fileno()}, workers, self.app.notifier.environ)

    def handle_usr2(self) -> None:
        """Called by gunicorn at SIGUSR2: write a report. gunicorn's own method would start a second master."""
        if self.app.write_report is None:
            LOG.warning('SIGUSR2 does nothing here')
            return
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


def _is_ready(worker: Any) -> bool:
    """Whether a worker has sent its first heartbeat, so that it serves.

    A heartbeat sets the modification time of a file to the time of the monotonic clock. A new file has the time of day,
    which is later.
    """
    try:
        return bool(worker.tmp.last_update() <= time.monotonic())
    except (OSError, ValueError):
        return False


def _tune_gc() -> None:
    """Exclude the loaded objects from Python's garbage collection, and collect less often.

    Called in a worker after it has loaded the application. The loaded objects live as long as the worker, and a request
    creates hardly any reference cycles. So frequent collection would find nothing.
    """
    _freeze_gc()
    gc.set_threshold(limits.GC_THRESHOLD)


def _freeze_gc() -> None:
    """Exclude all present objects from garbage collection.

    The garbage collector writes to each object. After a fork each write copies a page that the processes share.
    """
    gc.collect()
    gc.freeze()


def _drop_privileges(worker: Any, identity: Identity | None) -> None:
    """Drop the privileges of a worker. Called after it has loaded the pipeline and before it accepts connections."""
    if identity is not None:
        # The worker's heartbeat is the modification time of this file. Only the owner of the file may set it.
        os.fchown(worker.tmp.fileno(), identity.uid, identity.gid)
        log_files.keep_open()
    drop.drop(identity)


def _read_until_end(descriptor: int, timeout_s: float, is_cancelled: Callable[[], bool]) -> str | None:
    """Read ``descriptor`` to its end and close it. Returns None after ``timeout_s``, or if it is cancelled."""
    deadline_s = time.monotonic() + timeout_s
    data = b''
    with os.fdopen(descriptor, 'rb', buffering=0) as pipe:
        while time.monotonic() < deadline_s and not is_cancelled():
            if not select.select([pipe], [], [], 0.1)[0]:
                continue
            received = pipe.read(65536)
            if not received:
                return data.decode()
            data += received
    return None


def worker_count(configured: int | None) -> int:
    """Number of workers for the value ``configured`` of ``metadata_workers``. None and 0 mean the default."""
    if configured == 0:
        _log_zero_workers()
    return configured or default_workers()


@functools.cache
def _log_zero_workers() -> None:
    LOG.info('metadata_workers = 0 means the default here: %s', default_workers())


def default_workers() -> int:
    """Half the number of processors, at least 1, at most 8. The other processors are for the host's instances."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))


def fail(program: str, error: Exception) -> int:
    """Print ``error`` to standard error, the reason why ``program`` does not start. Returns the exit code."""
    print(f'{program}: {error}', file=sys.stderr)  # noqa: T201
    return 1
