# SPDX-License-Identifier: Apache-2.0
"""Count and time requests for Prometheus, and switch on all other metrics of the agent. Off by default.

Two labels say what became of a request, in ``metadata_wsgi_request_seconds``:

``status``   status code of the response, or ``fault`` if a filter raised an exception and the response was 503
``reached``  ``unidentified``: the source is not known (400). ``source``: the instance is not known (404: none, 503:
             the lookup is unavailable, 429). ``instance``: a filter after ``instance`` responded (429 rate_limit,
             401 session_token, 404 path_policy, 200 response_cache). ``upstream``: Nova's response, or 503 without one.

The filter stands behind ``catch_errors`` and ``request_id`` and only counts. No instance can read the metrics: the
agent serves them on the host, on the address in ``listen``. Without ``listen`` a process of its own can do that::

    gunicorn --paste /etc/metadata_wsgi/api-paste.ini#metrics --bind 127.0.0.1:9698

Each worker writes its counts into files in ``directory`` (``metrics/files.py``), and the page adds them up. Without
this filter nothing is counted anywhere in the agent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi import instruments
from metadata_wsgi.config import config_files
from metadata_wsgi.metrics import options, sink
from metadata_wsgi.pipeline.outcome import StatusRecorder, stage_reached
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges import options as privileges_options

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

GROUP = options.GROUP
OPTS = options.OPTS


class MetricsFilter:
    """Observes each request, also one that ends with an exception."""

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


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], MetricsFilter]:
    """For ``use = egg:metadata_wsgi#metrics``."""
    directory = options.load_directory(global_conf)
    conf = config_files.load(global_conf, privileges_options.OPTS)
    workers = identity.resolve_workers(conf.metadata_user, conf.metadata_group)
    # A worker that root has started loads the pipeline as root, and counts as the user in ``workers``.
    options.make_directory(directory, (workers.uid, workers.gid) if workers and os.geteuid() == 0 else None)
    sink.connect(directory)
    return MetricsFilter
