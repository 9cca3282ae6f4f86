# SPDX-License-Identifier: Apache-2.0
"""Say until when the guest must have its answer. Stands before whatever takes time.

Guests wait 10 s for each answer (cloud-init, Ignition, CirrOS), so the whole way has 9 s by default:
namespace proxy, lookup, retries and Nova together. The namespace proxy has spent some of it and says
what is left in ``X-Metadata-Remaining-Ms``, which is deleted here; it can only shorten the time.

A guest cannot set it: the namespace proxy deletes every ``X-Metadata-*`` header of a guest.
Establishes DEADLINE.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.http import header_names
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = [
    cfg.FloatOpt(
        'answer_within',
        default=limits.REQUEST_TIMEOUT_S,
        min=0.1,
        max=3600.0,
        help='Seconds from the request to the answer, all retries included. Guests wait 10.',
    ),
]

_KEY = 'HTTP_' + header_names.REMAINING_MS.upper().replace('-', '_')


class DeadlineFilter:
    """Establishes DEADLINE, ``answer_within_s`` from now or earlier."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES = frozenset({environ_keys.DEADLINE})

    def __init__(
        self, app: WSGIApplication, *, answer_within_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app = app
        self._answer_within_s = answer_within_s
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Write it down and go on."""
        left = environ.pop(_KEY, '')
        within_s = self._answer_within_s
        if left.isascii() and left.isdigit():
            within_s = min(within_s, int(left[:9]) / 1000)
        received_at_s = environ.get(environ_keys.RECEIVED_AT_S, self._clock())
        environ[environ_keys.DEADLINE] = Deadline(received_at_s + within_s, self._clock)
        return self.app(environ, start_response)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], DeadlineFilter]:
    """For ``use = egg:metadata_wsgi#deadline``."""
    conf = config_files.load(global_conf, OPTS)
    return lambda app: DeadlineFilter(app, answer_within_s=conf.answer_within)
