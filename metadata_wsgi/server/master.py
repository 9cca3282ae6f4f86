# SPDX-License-Identifier: Apache-2.0
"""The gunicorn master, embedded: its settings, and the start of its workers. ``arbiter`` handles the signals.

Workers use gevent. A request that waits for Neutron, for Nova or for a slow client costs a few kilobytes and no thread.

The master keeps root's privileges, if it has them. It reads the configuration and forks workers, but handles no
request. A worker loads the pipeline as root, then drops all privileges (``privileges``), then accepts connections. So
files with secrets and keys may be readable for root only.

The master opens the log files as root too (``log_files``). Send SIGHUP after logrotate has moved a log file. If a log
handler rotates its file itself (oslo.log's ``log_rotation_type``), the program does not start.

All settings of gunicorn that would accept malformed requests are off.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from metadata_wsgi import limits
from metadata_wsgi.failures.shared_memory import FailureMemory
from metadata_wsgi.failures.worker_memories import WorkerMemories
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.pipeline.environ_keys import Namespace
from metadata_wsgi.privileges import drop
from metadata_wsgi.privileges.identity import Identity
from metadata_wsgi.server import config_check, log_files, preload, reexec
from metadata_wsgi.server.arbiter import Arbiter
from metadata_wsgi.server.worker import MetadataWorker, Stoppable, WorkerOptions

STRICT: dict[str, Any] = {
    # A header with an underscore in its name is dropped: its environ key would be that of the name with a hyphen. No
    # peer may set the path or the scheme.
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


class Log(Logger):
    """Sends gunicorn's messages to the root logger."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.NOTSET)
        self.access_log.propagate = False


class Server(BaseApplication):
    """Serves the application that ``load`` returns on ``listeners``. Each worker calls ``load`` itself.

    ``load``: raises MetadataError if the configuration is wrong. A child process calls it first, as a check.
    ``settings``: returns gunicorn's ``workers``, ``backlog`` and ``worker_connections``. Called at start, and in the
    child process at SIGHUP.
    ``on_worker_start``: called in each new worker, right after the fork.
    ``on_ready``: called in the master when the listeners are open, before the first worker is forked.
    ``identity``: returns the user to which new workers switch, or None if they keep theirs. Called each second. If the
    result changes, the workers are replaced.
    ``on_config_checked``: called in the child process after ``load``. It may log warnings.
    ``on_first_worker``: called in one worker after each start and SIGHUP, with the application as argument. The worker
    has already dropped its privileges. The function must return at once.
    ``notifier``: notifies systemd.
    ``keeps_sockets``: systemd has copies of the sockets, so the files of unix sockets are not deleted at the end.
    ``socket_name``: the listener's name for ``reexec``; there must be one listener only. With '' SIGUSR1 does nothing.
    ``write_report``: called in the master at SIGUSR2. It must return at once.
    ``keeper``, ``namespace``, ``any_destination``, ``program``, ``on_serve``: see WorkerOptions.
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
        namespace: Namespace | None = None,
        on_ready: Callable[[], None] = lambda: None,
        identity: Callable[[], Identity | None] = lambda: None,
        any_destination: bool = False,
        on_config_checked: Callable[[], None] = lambda: None,
        on_first_worker: Callable[[Any], None] = lambda app: None,
        notifier: Notifier | None = None,
        program: str = 'agent',
        on_serve: Callable[[Any], Stoppable | None] = lambda app: None,
        write_report: Callable[[], object] = lambda: None,
        keeps_sockets: bool = False,
        socket_name: str = '',
    ) -> None:
        log_files.refuse_rotating_handlers()
        log_files.watch()
        self._load = load
        self._bind = [f'fd://{listener.detach()}' for listener in listeners]
        self._settings = settings
        self._name = name
        self._on_worker_start = on_worker_start
        self.worker_options = WorkerOptions(
            keeper=keeper,
            namespace=namespace,
            any_destination=any_destination,
            program=program,
            on_serve=on_serve,
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
        self._first_worker_age: int | None = None
        super().__init__(prog=name)

    def load_config(self) -> None:
        """Called by gunicorn at start."""
        settings = {
            'bind': self._bind,
            'proc_name': self._name,
            'worker_class': MetadataWorker,
            'timeout': limits.WORKER_TIMEOUT_S,
            'graceful_timeout': limits.GRACEFUL_TIMEOUT_S,
            'logger_class': Log,
            'control_socket_disable': True,
            'preload_app': False,
            'umask': _umask(),
            **STRICT,
            'pre_fork': self._before_fork,
            'post_fork': self._after_fork,
            'child_exit': lambda arbiter, worker: self._failure_memories.end(worker.age),
            'post_worker_init': self._on_worker_loaded,
            'when_ready': self._on_listening,
        }
        self.use({**settings, **self._settings()})

    def use(self, settings: Mapping[str, Any]) -> None:
        """Use these settings of gunicorn from now on. The next worker counts as the first one."""
        for key, value in settings.items():
            self.cfg.set(key, value)
        self._first_worker_age = None

    def load(self) -> Any:
        """Called by gunicorn in each worker."""
        return self._load()

    def _on_listening(self, arbiter: Any) -> None:
        # Before the first worker is forked: workers share the memory that they do not change.
        preload.import_modules()
        preload.freeze_gc()
        self._on_ready()

    def _before_fork(self, arbiter: Any, worker: Any) -> None:
        # ``age`` is the number that gunicorn gives to each worker.
        if self._first_worker_age is None:
            self._first_worker_age = worker.age
        self._failure_memories.add(worker.age)

    def on_fork_failed(self, age: int) -> None:
        """Called in the master if the worker with this number could not be forked."""
        self._failure_memories.discard(age)
        if self._first_worker_age == age:
            self._first_worker_age = None

    def _after_fork(self, arbiter: Any, worker: Any) -> None:
        self.failure_memory = self._failure_memories.take(worker.age)
        self._on_worker_start()

    def _on_worker_loaded(self, worker: Any) -> None:
        preload.tune_gc()
        _drop_privileges(worker, self._worker_identity)
        if worker.age == self._first_worker_age:
            self._on_first_worker(worker.wsgi)

    def update_identity(self) -> bool:
        """Determine the user of new workers again. Returns whether it has changed."""
        before = self._worker_identity
        with suppress(OSError):
            # For lack of descriptors. The next call tries again.
            self._worker_identity = self._identity()
        return before != self._worker_identity

    def check_config_in_child(self, is_cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Load the application in a child process. Raises MetadataError as ``config_check.run_in_child`` does.

        Returns the ``settings`` that the child has read.
        """

        def load() -> dict[str, Any]:
            settings = self._settings()
            self._load()
            self._on_config_checked()
            return settings

        checked: dict[str, Any] = config_check.run_in_child(load, is_cancelled)
        return checked

    def run(self) -> None:
        """Serve until SIGTERM."""
        drop.no_core_files()
        Arbiter(self).run()


def _umask() -> int:
    """The umask of this process. gunicorn sets another one while it makes a file, and leaves it set if this fails."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _drop_privileges(worker: Any, identity: Identity | None) -> None:
    """Drop the privileges of a worker. Called after it has loaded the pipeline and before it accepts connections."""
    if identity is not None:
        # The worker's heartbeat is the modification time of this file. Only the owner of the file may set it.
        os.fchown(worker.tmp.fileno(), identity.uid, identity.gid)
        log_files.keep_open()
    drop.drop(identity)
