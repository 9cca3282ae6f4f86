# SPDX-License-Identifier: Apache-2.0
"""Counts requests for Prometheus, measures their time, and enables all metrics of the agent. Off by default.

The metric ``metadata_wsgi_request_seconds`` has two labels with the outcome of a request:

``status``   status code of the response, or ``fault`` if a filter raised an exception and the response was 503
``reached``  the last stage of the pipeline that the request reached:
             ``unidentified``: the client is not known (400; 403: peer_credentials).
             ``source``: the instance is not known (404: there is none, or several match; 503: the lookup failed; 429:
             rate_limit).
             ``instance``: a filter after ``instance`` responded (429 rate_limit, 401 session_token, 404 path_policy,
             200 response_cache).
             ``upstream``: Nova's response; 503 if Nova did not respond; 400, 408 or 413 if the request is malformed,
             too slow or too large.

The filter must be after ``catch_errors`` and ``request_id``. It changes no request. No instance can read the metrics:
the agent serves them on the host, on the address in ``listen``. Without ``listen`` a separate process can serve them::

    gunicorn --paste /etc/metadata_wsgi/api-paste.ini#metrics --bind 127.0.0.1:9698

Each worker writes its counts into files in ``directory`` (``metrics/files.py``). The page adds them up. Without this
filter the agent counts nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi import instruments
from metadata_wsgi.config import config_files
from metadata_wsgi.metrics import options, sink
from metadata_wsgi.pipeline import paste_loader
from metadata_wsgi.pipeline.outcome import StatusRecorder, stage_reached
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges import options as privileges_options

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

GROUP = options.GROUP
OPTS = options.OPTS


class MetricsFilter:
    """Counts each request, including requests that end with an exception."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.app = app
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the app, and count the request."""
        started_at_s = self._clock()
        recorder = StatusRecorder(start_response)
        try:
            return self.app(environ, recorder)
        finally:
            instruments.REQUEST_SECONDS.observe(
                self._clock() - started_at_s, stage_reached(environ), recorder.status or 'fault'
            )


def check_directory(global_conf: Mapping[str, str]) -> None:
    """Raise ConfigError if the agent could not count, were it started by the user of this process. Changes nothing."""
    options.check_directory(options.load_directory(global_conf), _owner(global_conf))


def _owner(global_conf: Mapping[str, str]) -> tuple[int, int] | None:
    """(uid, gid) of the workers if root starts them, else None."""
    conf = config_files.load(global_conf, privileges_options.OPTS)
    workers = identity.resolve_workers(conf.metadata_user, conf.metadata_group)
    return (workers.uid, workers.gid) if workers and os.geteuid() == 0 else None


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], MetricsFilter]:
    """For ``use = egg:metadata_wsgi#metrics``."""
    directory = options.load_directory(global_conf)
    if paste_loader.ONLY_CHECK not in global_conf:
        # If root started the agent, a worker loads the pipeline as root. Later it writes counts as its own user.
        options.make_directory(directory, _owner(global_conf))
    sink.connect(directory)
    return MetricsFilter
