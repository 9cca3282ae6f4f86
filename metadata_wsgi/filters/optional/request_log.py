# SPDX-License-Identifier: Apache-2.0
"""An access log: one line for each request with client, path and status. Off by default.

::

    10.1.1.2 behind router 54d4... instance 6d0f... GET /openstack/latest/meta_data.json 200 1.3 ms

The line ends with the time until the header of the response. No header, query or body is logged, so no password, token
or user-data is logged. The path is percent-encoded, so a client cannot forge a log line. A boot is 28 lines. The filter
must be after ``catch_errors``. It has no options.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.pipeline.outcome import StatusRecorder

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

MAX_PATH_LENGTH = 200


class RequestLogFilter:
    """Logs each request."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the next filter and log the request, even if the request ends with an exception."""
        started_at_s = self._clock()
        method, path = environ['REQUEST_METHOD'], environ['PATH_INFO']
        recorder = StatusRecorder(start_response)
        try:
            return self.app(environ, recorder)
        finally:
            instance: environ_keys.Instance | None = environ.get(environ_keys.INSTANCE)
            LOG.info(
                '%s instance %s %s %s %s %.1f ms',
                environ.get(environ_keys.SOURCE, 'nobody'),
                instance.instance_id if instance else '-',
                quote(method[:20]),
                quote(path.encode('latin-1')[:MAX_PATH_LENGTH], safe='/'),
                recorder.status or 'fault',
                1000 * (self._clock() - started_at_s),
            )


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], RequestLogFilter]:
    """For ``use = egg:metadata_wsgi#request_log``."""
    return RequestLogFilter
