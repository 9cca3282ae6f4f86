# SPDX-License-Identifier: Apache-2.0
"""Count and time requests for Prometheus, by status and by how far they came. Off by default.

One histogram, ``metadata_wsgi_request_seconds`` (its ``_count`` is the number of requests), with two labels:

``status``   the answer's, or ``fault`` where a filter broke and the guest was answered 503
``reached``  ``unidentified``: the source is unknown (400). ``source``: not which instance it is (404 none, 503 the
             directory is away, 429). ``instance``: a filter behind answered itself (429 rate_limit, 401 session_token,
             404 path_policy, 200 cache_answers). ``upstream``: Nova's answer, or 503 where it gave none.

The filter stands behind ``catch_errors`` and only counts. No guest can read what it counts: that is served by an app of
its own, ``metrics_page``, in a process of its own on the host, for example::

    gunicorn --paste /etc/metadata_wsgi/api-paste.ini#metrics --bind 127.0.0.1:9698

The workers meet in ``directory``: each writes a file there (64 KiB), the page adds them up. The file of a worker that
has ended stays, or its counts would be missing; so the directory should be one that is emptied at boot, as /run is.
"""

from __future__ import annotations

import functools
import logging
import os
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
        help='Directory in which the workers count, and from which the metrics are read; the agent writes there.',
    ),
]

PATH = '/metrics'
NAME = 'metadata_wsgi_request_seconds'
Observe = Callable[[str, str, float], object]
"""Called with how far a request came, its status, and the seconds it took."""


class MetricsFilter:
    """Tells ``observe`` of each request, also of one that ends in an exception."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self, app: WSGIApplication, *, observe: Observe, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.app = app
        self._observe = observe
        self._clock = clock
        self._seldom = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Go on, and count it."""
        began_s = self._clock()
        heard = StatusRecorder(start_response)
        try:
            return self.app(environ, heard)
        finally:
            self._tell(stage_reached(environ), heard.status or 'fault', self._clock() - began_s)

    def _tell(self, came: str, status: str, seconds: float) -> None:
        try:
            self._observe(came, status, seconds)
        except OSError as error:
            # A guest's answer does not depend on whether it was counted.
            if self._seldom.allow():
                LOG.error('Requests are not counted: %s', error)


class MetricsPage:
    """The app that answers PATH with ``page()``, in Prometheus's text format."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, page: Callable[[], bytes]) -> None:
        self._page = page

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The page, or 404."""
        if environ['PATH_INFO'] != PATH:
            return error_responses.not_found()(environ, start_response)
        return webob.Response(self._page(), content_type='text/plain', charset='utf-8')(environ, start_response)


@functools.cache
def _observe_in(directory: str) -> Observe:
    """The one histogram of this process: two of a name would write over each other's file."""
    # The library decides when it is imported, by this variable, whether processes share their counts.
    os.environ['PROMETHEUS_MULTIPROC_DIR'] = directory
    import prometheus_client

    histogram = prometheus_client.Histogram(
        NAME,
        'Requests of guests: seconds until the head of the answer.',
        ['reached', 'status'],
        registry=prometheus_client.CollectorRegistry(),
    )
    # Opens this process's file now: a worker gives up its user before it serves.
    histogram.labels(UPSTREAM, '200')
    return lambda came, status, seconds: histogram.labels(came, status).observe(seconds)


def _page_of(directory: str) -> bytes:
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
    observe = _observe_in(directory)
    return lambda app: MetricsFilter(app, observe=observe)


def app_factory(global_conf: Mapping[str, str]) -> MetricsPage:
    """For ``use = egg:metadata_wsgi#metrics_page``."""
    directory = _directory(global_conf)
    return MetricsPage(lambda: _page_of(directory))
