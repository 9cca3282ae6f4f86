# SPDX-License-Identifier: Apache-2.0
"""Sets the deadline of the request. This filter must be before all filters that take time.

Instances wait 10 s for a response (cloud-init, Ignition, CirrOS). So a request has 9 s by default. This time is for
namespace proxy, lookup, retries and Nova together. The namespace proxy sends the remaining time in
``X-Metadata-Remaining-Ms``. This header can only shorten ``request_timeout``. The filter deletes the header.

Our namespace proxy deletes every ``X-Metadata-*`` header of a client. In mode ``one_hop`` there is no namespace proxy,
so the filter ignores the header. Behind haproxy a client can send the header, and shorten its own deadline. So a
failure for lack of time does not count as a failure of Neutron, Keystone or a Nova host, and causes no stale result.
The filter reads NAMESPACE, if it is set, and writes DEADLINE.
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
        'request_timeout',
        default=limits.REQUEST_TIMEOUT_S,
        min=0.1,
        max=3600.0,
        deprecated_name='answer_within',
        help='Seconds from a request to its response, including all retries. Instances wait 10 seconds.',
    ),
]

_REMAINING_KEY = header_names.environ_key(header_names.REMAINING_MS)


class DeadlineFilter:
    """Writes DEADLINE: at most ``request_timeout_s`` seconds after the request arrived."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES = frozenset({environ_keys.DEADLINE})

    def __init__(
        self, app: WSGIApplication, *, request_timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app = app
        self._request_timeout_s = request_timeout_s
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set the deadline and call the next filter."""
        remaining_ms = environ.pop(_REMAINING_KEY, '')
        timeout_s = self._request_timeout_s
        if environ_keys.NAMESPACE not in environ and remaining_ms.isascii() and remaining_ms.isdigit():
            # Nine digits of milliseconds are eleven days, more than the option allows. A cut keeps int() fast.
            timeout_s = min(timeout_s, int(remaining_ms[:9]) / 1000)
        received_at_s = environ.get(environ_keys.RECEIVED_AT_S, self._clock())
        environ[environ_keys.DEADLINE] = Deadline(received_at_s + timeout_s, self._clock)
        return self.app(environ, start_response)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], DeadlineFilter]:
    """For ``use = egg:metadata_wsgi#deadline``."""
    conf = config_files.load(global_conf, OPTS)
    return lambda app: DeadlineFilter(app, request_timeout_s=conf.request_timeout)
