# SPDX-License-Identifier: Apache-2.0
"""Say on the host whether the path works: one URL for a monitor, which no guest can reach. Off by default.

::

    $ curl --unix-socket /var/lib/quantum/metadata_proxy http://agent/healthcheck
    directory: reachable, 3 s ago
    nova: not reachable, 1 s ago

The answer is 200, or 503 when directory or Nova were not reachable when they were asked last, at most a minute ago.
Nobody is asked for it: it tells what guests' requests met, in the worker process that answers; so it costs nothing,
and a host without guests is healthy.

A guest that asks for the same path hears what Nova says to it: only a request on the agent's own socket that says
nothing of who asks is the host's, and a namespace proxy always says who asks. Stands before ``source``. It only
watches what passes. It has no options.
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
LATELY_S = 60.0
NOVA_FAILS = frozenset({'500', '502', '503', '504'})


class HealthcheckFilter:
    """Answers PATH to the host, and watches all others."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._clock = clock
        self._lately: dict[str, tuple[float, bool]] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the host, or go on and watch."""
        if environ['PATH_INFO'] == PATH and is_local_request(environ):
            return self._answer()(environ, start_response)
        heard = StatusRecorder(start_response)
        body = self.app(environ, heard)
        self._watch(stage_reached(environ), heard.status)
        return body

    def _watch(self, came: str, status: str) -> None:
        now_s = self._clock()
        if came != UNIDENTIFIED:
            self._lately['directory'] = (now_s, not (came == SOURCE and status == '503'))
        if came == UPSTREAM:
            self._lately['nova'] = (now_s, status not in NOVA_FAILS)

    def _answer(self) -> webob.Response:
        now_s, lines, healthy = self._clock(), [], True
        for name in ('directory', 'nova'):
            at_s, reachable = self._lately.get(name, (float('-inf'), True))
            if now_s - at_s > LATELY_S:
                lines.append(f'{name}: not asked lately')
                continue
            healthy = healthy and reachable
            lines.append(f'{name}: {"reachable" if reachable else "not reachable"}, {now_s - at_s:.0f} s ago')
        return webob.Response('\n'.join([*lines, '']), status=200 if healthy else 503, content_type='text/plain')


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], HealthcheckFilter]:
    """For ``use = egg:metadata_wsgi#healthcheck``."""
    return HealthcheckFilter
