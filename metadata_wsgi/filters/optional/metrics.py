# SPDX-License-Identifier: Apache-2.0
"""Counts and times requests for Prometheus, by status code and by the last stage that they reached. Off by default.

One histogram, ``metadata_wsgi_request_seconds`` (its ``_count`` is the number of requests), with two labels:

``status``   status code of the response, or ``fault`` if a filter raised an exception and the response was 503
``reached``  ``unidentified``: the source is not known (400). ``source``: the instance is not known (404: none, 503:
             the lookup is unavailable, 429). ``instance``: a filter after ``instance`` responded (429 rate_limit,
             401 session_token, 404 path_policy, 200 response_cache). ``upstream``: Nova's response, or 503 without one.

The filter must be after ``catch_errors``. No instance can read the metrics: another app, ``metrics_page``, serves them
in a separate process on the host, for example::

    gunicorn --paste /etc/metadata_wsgi/api-paste.ini#metrics --bind 127.0.0.1:9698

Each worker writes a file of 64 KiB in ``directory``, and the page adds the files up. The file of an ended worker
remains, because its counts are part of the sums. So use a directory that is emptied at boot, such as one in /run. The
file of a process that counted no request is removed at the next start of a worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import webob
from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.http import error_responses
from metadata_wsgi.pipeline.outcome import UPSTREAM, StatusRecorder, stage_reached
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

GROUP = 'metrics'
OPTS = [
    cfg.StrOpt(
        'directory',
        default='/run/metadata_wsgi/metrics',
        help="Directory of the workers' counters. The agent writes to it, metrics_page reads from it.",
    ),
]

PATH = '/metrics'
NAME = 'metadata_wsgi_request_seconds'
Observe = Callable[[str, str, float], object]
"""Called with the stage that a request reached, its status code, and its duration in seconds."""


class MetricsFilter:
    """Calls ``observe`` after each request, even if the request ended with an exception."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self, app: WSGIApplication, *, observe: Observe, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.app = app
        self._observe = observe
        self._clock = clock
        self._error_log = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the app, and count the request."""
        started_at_s = self._clock()
        recorder = StatusRecorder(start_response)
        try:
            return self.app(environ, recorder)
        finally:
            self._count(stage_reached(environ), recorder.status or 'fault', self._clock() - started_at_s)

    def _count(self, stage: str, status: str, seconds: float) -> None:
        try:
            self._observe(stage, status, seconds)
        except OSError as error:
            # The request continues even if it cannot be counted.
            if self._error_log.allow():
                LOG.error('Requests are not counted: %s', error)


class MetricsPage:
    """The app that responds to PATH with ``page()``, in Prometheus's text format."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, page: Callable[[], bytes]) -> None:
        self._page = page

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond with the page, or with 404 for another path."""
        if environ['PATH_INFO'] != PATH:
            return error_responses.not_found()(environ, start_response)
        return webob.Response(self._page(), content_type='text/plain', charset='utf-8')(environ, start_response)


@functools.cache
def _histogram_in(directory: str) -> Observe:
    """The function that counts in this process's only histogram. Two histograms would overwrite each other's file."""
    # prometheus_client reads this variable when it is imported. With it the counts of all processes are added up.
    os.environ['PROMETHEUS_MULTIPROC_DIR'] = directory
    import prometheus_client

    histogram = prometheus_client.Histogram(
        NAME,
        'Requests: seconds until the header of the response.',
        ['reached', 'status'],
        registry=prometheus_client.CollectorRegistry(),
    )
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory_fd, fcntl.LOCK_EX)
        _remove_unused(directory)
        # Create the file of this process now, before the worker drops its user.
        histogram.labels(UPSTREAM, '200')
        # Open and locked until the process ends, so that other processes see that the file is in use.
        fcntl.flock(os.open(os.path.join(directory, f'histogram_{os.getpid()}.db'), os.O_RDONLY), fcntl.LOCK_SH)
    finally:
        os.close(directory_fd)
    return lambda stage, status, seconds: histogram.labels(stage, status).observe(seconds)


def _remove_unused(directory: str) -> None:
    """Remove the files of ended processes that counted no request.

    Such processes are check-config and the check of the configuration before a reload.
    """
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if not (name.startswith('histogram_') and name.endswith('.db')):
            continue
        with contextlib.suppress(OSError, ValueError, RuntimeError, struct.error):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: in use
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and not _has_counts(f'/proc/self/fd/{descriptor}'):
                    os.unlink(path)
            finally:
                os.close(descriptor)


def _has_counts(path: str) -> bool:
    from prometheus_client.mmap_dict import MmapedDict

    values = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
    return any(value for _, value, *_ in values)


def _render(directory: str) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _directory(global_conf: Mapping[str, str]) -> str:
    directory: str = config_files.load(global_conf, OPTS, GROUP).metrics.directory
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'directory = {directory} in [{GROUP}] cannot be made: {error.strerror}') from error
    return directory


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], MetricsFilter]:
    """For ``use = egg:metadata_wsgi#metrics``."""
    directory = _directory(global_conf)
    if not os.access(directory, os.W_OK):
        raise ConfigError(f'directory = {directory} in [{GROUP}] is not writable for this user')
    observe = _histogram_in(directory)
    return lambda app: MetricsFilter(app, observe=observe)


def app_factory(global_conf: Mapping[str, str]) -> MetricsPage:
    """For ``use = egg:metadata_wsgi#metrics_page``."""
    directory = _directory(global_conf)
    return MetricsPage(lambda: _render(directory))
