# SPDX-License-Identifier: Apache-2.0
"""A health check URL for a monitoring system on the host. No instance can reach it. Off by default.

::

    $ curl --unix-socket /var/lib/quantum/metadata_proxy http://agent/healthcheck
    directory: reachable, 3 s ago
    nova: not reachable, 1 s ago

The status is 503 if the last use of the lookup or of Nova failed within the last minute, else 200. The check sends no
request of its own. It reports the results of clients' requests in the worker process that responds. So it costs
nothing, and a host without requests is healthy.

A request for the same path from an instance is sent to Nova. The filter recognises a request of the host because it
arrives on the agent's own socket and has no header that names a client; a namespace proxy always sends such headers.
The filter must be before ``header_source``. It has no options.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import webob

from metadata_wsgi.pipeline.outcome import (
    SOURCE,
    UNIDENTIFIED,
    UPSTREAM,
    StatusRecorder,
    is_local_request,
    stage_reached,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PATH = '/healthcheck'
STALE_AFTER_S = 60.0
NOVA_FAILURE_STATUSES = frozenset({'500', '502', '503', '504'})
OWN_STATUSES = frozenset({'400', '408', '413'})
"""``upstream`` itself responds with these, without Nova, if a request is malformed, too slow or too large."""
LOOKUP_STATUSES = frozenset({'404', '503'})
"""Statuses of a lookup that finds no instance. Another status, at that stage, is from a filter before the lookup."""


class HealthcheckFilter:
    """Responds to requests of the host for PATH, and records the results of all other requests."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._clock = clock
        self._last_seen: dict[str, tuple[float, bool]] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond to a request of the host; otherwise call the next filter and record its status."""
        if environ['PATH_INFO'] == PATH and is_local_request(environ):
            return self._response()(environ, start_response)
        recorder = StatusRecorder(start_response)
        body = self.app(environ, recorder)
        self._observe(stage_reached(environ), recorder.status)
        return body

    def _observe(self, stage: str, status: str) -> None:
        now_s = self._clock()
        if stage not in (UNIDENTIFIED, SOURCE) or (stage == SOURCE and status in LOOKUP_STATUSES):
            self._last_seen['directory'] = (now_s, not (stage == SOURCE and status == '503'))
        if stage == UPSTREAM and status not in OWN_STATUSES:
            self._last_seen['nova'] = (now_s, status not in NOVA_FAILURE_STATUSES)

    def _response(self) -> webob.Response:
        now_s, lines, healthy = self._clock(), [], True
        for name in ('directory', 'nova'):
            at_s, reachable = self._last_seen.get(name, (float('-inf'), True))
            if now_s - at_s > STALE_AFTER_S:
                lines.append(f'{name}: not used lately')
                continue
            healthy = healthy and reachable
            lines.append(f'{name}: {"reachable" if reachable else "not reachable"}, {now_s - at_s:.0f} s ago')
        return webob.Response('\n'.join([*lines, '']), status=200 if healthy else 503, content_type='text/plain')


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], HealthcheckFilter]:
    """For ``use = egg:metadata_wsgi#healthcheck``."""
    return HealthcheckFilter
