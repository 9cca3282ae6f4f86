# SPDX-License-Identifier: Apache-2.0
"""Converts the result of a lookup: into the instance of a request, or into an error response.

==============================  =====================================================================================
result                          response
==============================  =====================================================================================
exactly one instance            none: INSTANCE is set and the request continues
none                            404
several                         404, and a warning with the ports: it is unknown which instance sent the request, and no
                                tenant may get the keys of another
LookupUnavailable               retried until the deadline, then 503 with Retry-After. Never 404: after 404 an instance
                                boots without keys
InstanceLookupError             503 with Retry-After at once: a retry cannot succeed
==============================  =====================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline, sleep
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.http import error_responses
from metadata_wsgi.http.retry import retry_until
from metadata_wsgi.lookup.protocol import InstanceLookup
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.throttle import KeyedThrottle, Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

ATTEMPT_TIME_SHARE = 2 / 3
"""An attempt gets this part of the remaining time. The rest is for a retry if the attempt gets no response."""


class InstanceResolver:
    """Sets INSTANCE of a request to the result of ``lookup``. Shared by all threads of a worker."""

    def __init__(self, lookup: InstanceLookup, *, sleep: Callable[[float], None] = sleep) -> None:
        self._lookup = lookup
        self._sleep = sleep
        self._failure_log = Throttle(limits.LOG_INTERVAL_S)
        # One throttle for each router or network: an instance can cause such lines and must not hide those of others.
        self._not_found_log = KeyedThrottle(limits.LOG_INTERVAL_S)

    def resolve(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Look SOURCE up and set INSTANCE, with retries until DEADLINE. Returns an error response if it fails."""
        source: environ_keys.Source = environ[environ_keys.SOURCE]
        try:
            found = self._find(source, environ[environ_keys.DEADLINE])
        except InstanceLookupError as error:
            if self._failure_log.allow():
                LOG.error('Requests get 503: the lookup of %s failed: %s', source, error)
            return error_responses.unavailable()
        if len(found) != 1:
            if self._not_found_log.allow((source.router_id, source.network_id, bool(found))):
                _log_not_found(source, found)
            return error_responses.instance_not_found()
        environ[environ_keys.INSTANCE] = found[0]
        return None

    def _find(self, source: environ_keys.Source, deadline: Deadline) -> Sequence[environ_keys.Instance]:
        return retry_until(
            lambda: self._lookup.find(source, deadline.fraction(ATTEMPT_TIME_SHARE)),
            deadline,
            retry_on=(LookupUnavailable,),
            sleep=self._sleep,
        )


def _log_not_found(source: environ_keys.Source, found: Sequence[environ_keys.Instance]) -> None:
    if found:
        LOG.warning('404 for %s, because %d instances match: ports %s', source, len(found), _ports(found))
    else:
        LOG.info('404 for %s, because no instance has this address', source)


def _ports(found: Sequence[environ_keys.Instance]) -> str:
    return ', '.join(sorted(f'{i.port_id} (instance {i.instance_id}, project {i.project_id})' for i in found))
