# SPDX-License-Identifier: Apache-2.0
"""Whether a worker makes progress. A worker sends its heartbeat to the master only while it makes progress.

Two faults stop the heartbeat. Either the event loop hangs, so nothing in the worker runs. Or the event loop runs, but
requests are stuck: one request is ``limits.STUCK_REQUEST_S`` past its deadline, and no request has ended in this time.

The master kills a worker that sent no heartbeat for ``limits.WORKER_TIMEOUT_S``, and starts another one. The master
feeds systemd's watchdog only while a worker sends heartbeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from metadata_wsgi import limits
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class Progress:
    """The requests that the application of a worker handles now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[int, WSGIEnvironment] = {}
        self._last_end_s = clock()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, environ: WSGIEnvironment) -> None:
        """Call before the application is called with ``environ``."""
        self._running[id(environ)] = environ

    def end(self, environ: WSGIEnvironment) -> None:
        """Call when the application has returned or raised an exception."""
        del self._running[id(environ)]
        self._last_end_s = self._clock()

    def is_made(self) -> bool:
        """Whether the worker makes progress (see this module). True without requests. Called in the event loop."""
        stuck_since_s = self._clock() - limits.STUCK_REQUEST_S
        if self._last_end_s > stuck_since_s:
            return True
        return not any(_deadline_s(environ) < stuck_since_s for environ in self._running.values())


def _deadline_s(environ: WSGIEnvironment) -> float:
    """The time of the monotonic clock by which this request must have its response."""
    deadline = environ.get(environ_keys.DEADLINE)
    if deadline is not None:
        return float(deadline.at_s)
    return float(environ[environ_keys.RECEIVED_AT_S]) + limits.REQUEST_TIMEOUT_S
