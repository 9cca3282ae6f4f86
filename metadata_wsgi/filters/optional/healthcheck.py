# SPDX-License-Identifier: Apache-2.0
"""Health of the agent for monitors, load balancers and Kubernetes. Off by default.

::

    $ curl --unix-socket /var/lib/quantum/metadata_proxy http://agent/healthcheck
    OK
    directory: reachable, 3 s ago
    nova: reachable, 1 s ago

``/healthcheck`` is the readiness check: 200, or 503 with the reasons. There are two reasons for 503:

- The latest lookup, or the latest request to Nova, failed less than a minute ago. The failure of a request that had
  less than ``limits.CIRCUIT_MIN_TIME_S`` left does not count. If Neutron responds, but does not show the router or
  network of the request, this does not count while the latest other lookup succeeded less than a minute ago.
- The node is drained: the file ``disable_by_file_path`` exists, or a file of ``enable_by_file_paths`` is missing. A
  drained agent still serves instances.

``/healthcheck/live`` is the liveness check: 200 as long as a worker responds. Failures of Neutron and Nova do not
count, because a restart of the agent would not repair them. On both paths HEAD gets 204 instead of 200. With ``Accept:
application/json`` the response is JSON.

The check sends no request to Neutron or Nova. It reports the results of instances' requests in the worker that
responds. So a host without requests is healthy. If the agent also serves mode ``one_hop``, put the filter into both
pipelines: each filter records the requests of its own pipeline, and the filters of a worker share the results.

The filter responds to requests of this host only. A request counts as one of this host if it arrives on the agent's own
socket without a header that names a client. A namespace proxy always sends such a header. If an instance requests
``/healthcheck``, its request goes to Nova. The agent also serves both checks on the address in ``[metrics] listen``.
The filter must be after ``request_id``.

The paths, statuses, reasons, options and the JSON are those of oslo.middleware's healthcheck. Differences: ``detailed``
is on by default, and adds lines to the text. The text ends with a newline. There is no HTML. Which checks are done
depends on the options of the files alone, and not on ``backends``.

oslo.middleware's healthcheck itself is not used, for three reasons. It is an application and not a filter, it needs a
library with a C extension, and it takes 7 MB of memory in each worker.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import webob
from oslo_config import cfg

from metadata_wsgi import instruments, limits
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.pipeline import environ_keys
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

GROUP = 'healthcheck'
OPTS = [
    cfg.StrOpt('path', default='/healthcheck', help='Path of the readiness check. PATH/live is the liveness check.'),
    cfg.BoolOpt('detailed', default=True, help='The response says when lookup and Nova were last used.'),
    cfg.StrOpt(
        'disable_by_file_path',
        default='',
        help='To drain a node, create this file. While it exists, the agent is not ready (503, DISABLED BY FILE).',
    ),
    cfg.ListOpt('enable_by_file_paths', default=[], help='The agent is ready only while all of these files exist.'),
]

LIVE = '/live'
STALE_AFTER_S = 60.0
NOVA_FAILURE_STATUSES = frozenset({'500', '502', '503', '504'})
OWN_STATUSES = frozenset({'400', '408', '413'})
"""Responses that ``upstream`` makes without Nova, because the request is malformed, too slow or too large."""
LOOKUP_STATUSES = frozenset({'404', '503'})
"""At the stage SOURCE these statuses are from the lookup. Other statuses are from a filter before the lookup."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check. ``reason`` is a constant text: ``OK``, or why the check failed."""

    check: str
    reason: str
    details: str

    @property
    def is_ok(self) -> bool:
        """Whether the check succeeded."""
        return self.reason == 'OK'


class HealthcheckFilter:
    """Responds to requests of the host for ``path`` and ``path/live``. Records the status of all other requests."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        app: WSGIApplication,
        *,
        path: str = '/healthcheck',
        detailed: bool = True,
        disable_by_file_path: str = '',
        enable_by_file_paths: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self._paths = frozenset({path, path + LIVE})
        self._live_path = path + LIVE
        self._detailed = detailed
        self._disable_by_file_path = disable_by_file_path
        self._enable_by_file_paths = enable_by_file_paths
        self._clock = clock
        self.last_results: dict[str, tuple[float, bool]] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond to a request of the host. For other requests, call the next filter and record the status."""
        if environ['PATH_INFO'] in self._paths and is_local_request(environ):
            return self.respond(environ, start_response)
        recorder = StatusRecorder(start_response)
        started_s = self._clock()
        body = self.app(environ, recorder)
        deadline: Deadline | None = environ.get(environ_keys.DEADLINE)
        had_time = deadline is None or deadline.at_s - started_s >= limits.CIRCUIT_MIN_TIME_S
        failure: environ_keys.Failure | None = environ.get(environ_keys.FAILURE)
        if failure is None or not failure.is_of_source or not self._directory_is_reachable():
            self._observe(stage_reached(environ), recorder.status, had_time=had_time)
        return body

    def has_path(self, path: str) -> bool:
        """Whether ``respond`` has a response for this path."""
        return path in self._paths

    def respond(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The response to a request of the host: the result of the readiness or the liveness check."""
        is_live = environ['PATH_INFO'] == self._live_path
        results = [Result('worker', 'OK', f'pid {os.getpid()}')] if is_live else self._results()
        return self._response(results, webob.Request(environ))(environ, start_response)

    def _observe(self, stage: str, status: str, *, had_time: bool) -> None:
        if stage not in (UNIDENTIFIED, SOURCE) or (stage == SOURCE and status in LOOKUP_STATUSES):
            self._record('directory', not (stage == SOURCE and status == '503'), had_time)
        if stage == UPSTREAM and status not in OWN_STATUSES:
            self._record('nova', status not in NOVA_FAILURE_STATUSES, had_time)

    def _directory_is_reachable(self) -> bool:
        at_s, reachable = self.last_results.get('directory', (float('-inf'), False))
        return reachable and self._clock() - at_s < STALE_AFTER_S

    def _record(self, name: str, reachable: bool, had_time: bool) -> None:
        if reachable or had_time:
            self.last_results[name] = (self._clock(), reachable)

    def _results(self) -> list[Result]:
        return [*self._results_of_files(), *map(self._result_of_service, ('directory', 'nova'))]

    def _results_of_files(self) -> Iterable[Result]:
        if path := self._disable_by_file_path:
            found = os.path.exists(path)
            instruments.DRAINED.set(int(found))
            yield Result('disable_by_file', 'DISABLED BY FILE' if found else 'OK', _found(path, found))
        for path in self._enable_by_file_paths:
            found = os.path.exists(path)
            yield Result('enable_by_files', 'OK' if found else 'FILE PATH MISSING', _found(path, found))

    def _result_of_service(self, name: str) -> Result:
        now_s = self._clock()
        at_s, reachable = self.last_results.get(name, (float('-inf'), True))
        if now_s - at_s > STALE_AFTER_S:
            return Result(name, 'OK', 'not used lately')
        reason = 'OK' if reachable else f'{name.upper()} NOT REACHABLE'
        return Result(name, reason, f'{"reachable" if reachable else "not reachable"}, {now_s - at_s:.0f} s ago')

    def _response(self, results: list[Result], request: Any) -> webob.Response:
        is_ok = all(result.is_ok for result in results)
        status = 200 if is_ok else 503
        if request.method == 'HEAD':
            return webob.Response(status=204) if is_ok else webob.Response(status=503, content_type='text/plain')
        offers = request.accept.acceptable_offers(['text/plain', 'application/json'])
        if offers and offers[0][0] == 'application/json':
            text = json.dumps(self._as_json(results), indent=4, sort_keys=True)
            return webob.Response(text, status=status, content_type='application/json', charset='utf-8')
        reasons = [result.reason for result in results if not result.is_ok] or ['OK']
        details = [f'{result.check}: {result.details}' for result in results] if self._detailed else []
        return webob.Response('\n'.join([*reasons, *details, '']), status=status, content_type='text/plain')

    def _as_json(self, results: list[Result]) -> dict[str, Any]:
        if not self._detailed:
            return {'detailed': False, 'reasons': [result.reason for result in results]}
        reasons = [{'class': one.check, 'details': one.details, 'reason': one.reason} for one in results]
        return {
            'detailed': True,
            'now': str(datetime.now(UTC).replace(tzinfo=None)),
            'platform': platform.platform(),
            'python_version': platform.python_version(),
            'reasons': reasons,
        }


def _found(path: str, found: bool) -> str:
    return f"Path '{path}' was {'' if found else 'not '}found"


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], HealthcheckFilter]:
    """For ``use = egg:metadata_wsgi#healthcheck``."""
    conf = config_files.load(global_conf, OPTS, GROUP).healthcheck
    return lambda app: HealthcheckFilter(
        app,
        path=conf.path,
        detailed=conf.detailed,
        disable_by_file_path=conf.disable_by_file_path,
        enable_by_file_paths=tuple(conf.enable_by_file_paths),
    )
