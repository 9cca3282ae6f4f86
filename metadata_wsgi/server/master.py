# SPDX-License-Identifier: Apache-2.0
"""gunicorn, embedded: sockets that are open already, workers on it, and signals as operators know them.

SIGHUP  reads the paste file and the options again and replaces the workers one generation by the next;
        a request that is under way is finished. What is wrong in them is logged, and the old ones stay.
SIGTERM stops accepting, finishes what is under way (``limits.GRACEFUL_TIMEOUT_S``), ends.
SIGUSR2 is not needed: while the agent restarts, the namespace proxies hold their guests' reads.

The workers are gevent's: a request that waits (for Quantum, for Nova to come back, for a slow guest)
costs a few kilobytes and no thread, so a few guests that wait cannot keep the others from being served.

The master keeps root's rights, if it has them, and reads no request: it reads the configuration again and makes
workers. A worker loads the pipeline as root, then gives everything up (``confinement``), then accepts. So secrets and
keys may belong to root alone. A log file is opened by root too: after logrotate has moved it, send SIGHUP.

Everything that gunicorn could do to be lenient with malformed requests stays off.
"""

from __future__ import annotations

import gc
import importlib
import logging
import logging.handlers
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.privileges import drop
from metadata_wsgi.privileges.identity import Identity
from metadata_wsgi.server.worker import MetadataWorker

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.IntOpt(
        'metadata_workers',
        min=1,
        max=256,
        help='Worker processes; each serves thousands of waiting requests. By default half the processors.',
    ),
    cfg.IntOpt(
        'metadata_backlog',
        default=4096,
        min=1,
        help='Connections that may wait to be accepted (net.core.somaxconn caps it).',
    ),
    cfg.IntOpt('metadata_connections', default=4096, min=16, help='Connections that one worker serves at a time.'),
]

STRICT: dict[str, Any] = {
    # A header may not become another's value: names with underscores are dropped, and no peer may
    # name the path or the scheme.
    'header_map': 'drop',
    'forwarder_headers': '',
    'forwarded_allow_ips': '127.0.0.1',
    'secure_scheme_headers': {},
    # Nothing that RFC 9112 calls malformed is mended; what one server mends another reads differently.
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
"""gunicorn's settings that decide how it reads a request."""

PRELOAD_MODULES = (
    *('gevent.resolver.thread', 'gevent.resolver._addresses', 'gevent.threadpool', 'gevent._threading', 'gevent.util'),
    *('encodings.idna', 'netrc', 'stringprep'),
)
"""What libraries import in the middle of a first request. Before the drop: the user that a worker becomes may have
no way to where Python is, and after an upgrade there is another version of it."""


class Log(Logger):
    """gunicorn's messages go where all others go."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.NOTSET)
        self.access_log.propagate = False


class Server(BaseApplication):
    """Serves what ``load`` returns on ``listeners``, in workers that call ``load`` themselves.

    ``settings`` gives the number of workers and connections, and is asked again on SIGHUP; ``load``
    is tried in a child process before any worker depends on it, and raises MetadataError when it cannot.
    ``in_worker`` is called in each new worker; ``keeper`` is whom to follow, and in which mode. ``identity``
    says whom the workers become before they serve; None: they stay who they are, and give up only their privileges. It
    is asked again each second: workers that became another are replaced.
    ``when_tried`` is called in the child after it could load: for what is only worth a warning.
    ``in_first`` is called with what was loaded in one worker of those that a start or a SIGHUP makes, after it has
    given everything up: for what need not be done by each. It must return at once.
    ``any_destination``: serve also who did not ask the metadata address (``destination``).
    """

    def __init__(
        self,
        load: Callable[[], Any],
        listeners: Sequence[socket.socket],
        *,
        settings: Callable[[], dict[str, Any]],
        name: str,
        in_worker: Callable[[], None] = lambda: None,
        keeper: tuple[str, str] | None = None,
        when_ready: Callable[[], None] = lambda: None,
        identity: Callable[[], Identity | None] = lambda: None,
        any_destination: bool = False,
        when_tried: Callable[[], None] = lambda: None,
        in_first: Callable[[Any], None] = lambda app: None,
    ) -> None:
        self._load = load
        self._bind = [f'fd://{listener.detach()}' for listener in listeners]
        self._settings = settings
        self._name = name
        self._in_worker = in_worker
        self._worker_class = _worker_class(keeper, any_destination)
        self._when_ready = when_ready
        self._when_tried = when_tried
        self._in_first = in_first
        self._identity = identity
        self._becomes = identity()
        super().__init__(prog=name)

    def load_config(self) -> None:
        """Called by gunicorn at start and on SIGHUP."""
        self._has_first = False
        settings = {
            'bind': self._bind,
            'proc_name': self._name,
            'worker_class': self._worker_class,
            'timeout': limits.WORKER_TIMEOUT_S,
            'graceful_timeout': limits.GRACEFUL_TIMEOUT_S,
            'logger_class': Log,
            'control_socket_disable': True,
            'preload_app': False,
            **STRICT,
            'pre_fork': self._choose_first,
            'post_fork': lambda arbiter, worker: self._in_worker(),
            'post_worker_init': self._loaded,
            'when_ready': lambda arbiter: self._when_ready(),
            **self._settings(),
        }
        for key, value in settings.items():
            self.cfg.set(key, value)

    def load(self) -> Any:
        """Called by gunicorn in each worker."""
        return self._load()

    def _choose_first(self, arbiter: Any, worker: Any) -> None:
        worker.is_first = not self._has_first
        self._has_first = True

    def _loaded(self, worker: Any) -> None:
        _collect_seldom()
        _confine(worker, self._becomes)
        if worker.is_first:
            self._in_first(worker.wsgi)

    def becomes_another(self) -> bool:
        """Whether workers that are made from now on become somebody else than those before."""
        before, self._becomes = self._becomes, self._identity()
        return before != self._becomes

    def try_loading(self) -> None:
        """Raise MetadataError if a worker could not load. In a child, so that no library is imported here
        that gevent has yet to change in the workers."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            try:
                self._settings()
                self._load()
                self._when_tried()
            except MetadataError as error:
                os.write(writing, str(error).encode())
            except BaseException as error:
                LOG.exception('The pipeline cannot be loaded')
                os.write(writing, f'the pipeline cannot be loaded: {type(error).__name__}: {error}'.encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, 'rb') as pipe:
            complaint = pipe.read().decode()
        os.waitpid(pid, 0)
        if complaint:
            raise MetadataError(complaint)

    def run(self) -> None:
        """Serve until told to stop."""
        drop.no_core_files()
        _Arbiter(self).run()


class _Arbiter(Arbiter):
    """gunicorn's master process, which keeps serving when what it should reload is wrong, and as whom it should."""

    def manage_workers(self) -> None:
        """Called by gunicorn each second: it makes workers that are missing, and stops the oldest of too many."""
        if self.app.becomes_another():
            LOG.info('The workers are replaced: they become another user')
            for _ in range(self.num_workers):
                self.spawn_worker()
        super().manage_workers()

    def reload(self) -> None:
        try:
            self.app.try_loading()
        except MetadataError as error:
            LOG.error('Not reloaded, the former pipeline and options stay in force: %s', error)
            return
        super().reload()
        LOG.info('Reloaded')

    def handle_usr2(self) -> None:
        LOG.warning('SIGUSR2 does nothing here: restart the service, the namespace proxies hold what guests ask')


def _collect_seldom() -> None:
    """Called in a worker that has loaded. What is loaded lives as long as the worker: Python's collector of cycles
    need not look at it again and again, and a request makes hardly a cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(limits.GC_THRESHOLD)


def _worker_class(keeper: tuple[str, str] | None, any_destination: bool) -> type:
    """Our worker, told whom to follow: gunicorn makes the workers, and knows no such setting."""
    return type('MetadataWorker', (MetadataWorker,), {'keeper': keeper, 'any_destination': any_destination})


def _confine(worker: Any, identity: Identity | None) -> None:
    """Called in a worker that has loaded the pipeline and does not accept yet."""
    for name in PRELOAD_MODULES:
        importlib.import_module(name)
    if identity is not None:
        # Its sign of life to the master is a file's time, which only the owner may set.
        os.fchown(worker.tmp.fileno(), identity.uid, identity.gid)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.handlers.WatchedFileHandler):
                # That user could not open it again, and every log call would raise.
                setattr(handler, 'reopenIfNeeded', lambda: None)  # noqa: B010 (a method, for mypy)
    drop.drop(identity)


def default_workers() -> int:
    """Half the processors, at least one, at most eight: the rest of the host has guests to run."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))


def refuse(program: str, error: Exception) -> int:
    """Say on standard error why ``program`` does not start; returns its exit code."""
    print(f'{program}: {error}', file=sys.stderr)  # noqa: T201
    return 1
