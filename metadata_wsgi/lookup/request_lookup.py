# SPDX-License-Identifier: Apache-2.0
"""The lookup of one request, with retries: sets the instance of the request, or makes an error response.

==============================  =====================================================================================
case                            response
==============================  =====================================================================================
exactly one instance            INSTANCE is set and the request continues
no instance                     404
several instances               404, and a warning with the ports: it is unknown which instance sent the request, and no
                                tenant may get the keys of another
the address is 169.254.169.254  404 without a lookup: no instance has the metadata address. openstack-helm's health
or fe80::a9fe:a9fe              check sends this address, and its result must not depend on Neutron
LookupUnavailable               503 with Retry-After, after retries until the deadline. Never 404, because after 404 an
                                instance boots without keys. The retries of all requests of a worker share one budget
                                (``http/retry.py``)
LookupUnavailable, but the      503. The failure does not count as unavailable in the metrics, and is not logged:
request had too little time     Neutron had no time to respond
InstanceLookupError             503 with Retry-After. The lookup is not retried: an operator must act first
==============================  =====================================================================================
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline, sleep
from metadata_wsgi.errors import IncompleteResult, InstanceLookupError, LookupUnavailable
from metadata_wsgi.http import error_responses
from metadata_wsgi.http.retry import RetryBudget, retry_until
from metadata_wsgi.lookup.protocol import InstanceLookup
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.throttle import KeyedThrottle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

METADATA_ADDRESSES = frozenset({'169.254.169.254', 'fe80::a9fe:a9fe'})
ATTEMPT_TIME_SHARE = 2 / 3
"""An attempt gets this part of the remaining time. The rest is for a retry if the attempt gets no response."""


class RequestLookup:
    """Sets INSTANCE of a request to the result of ``lookup``. Shared by all threads of a worker."""

    def __init__(
        self,
        lookup: InstanceLookup,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._lookup = lookup
        self._sleep = sleep
        self._retry_budget = RetryBudget(clock)
        self._failure_log = KeyedThrottle(limits.LOG_INTERVAL_S)
        # One throttle for each router or network: an instance can cause log lines, and must not suppress those of
        # others.
        self._not_found_log = KeyedThrottle(limits.LOG_INTERVAL_S)

    def set_instance(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Look SOURCE up and set INSTANCE, with retries until DEADLINE. Returns None, or an error response."""
        source: environ_keys.Source = environ[environ_keys.SOURCE]
        if source.address in METADATA_ADDRESSES:
            return error_responses.instance_not_found()
        deadline: Deadline = environ[environ_keys.DEADLINE]
        started_s = deadline.clock()
        try:
            found = self._find(source, deadline)
        except InstanceLookupError as error:
            is_unavailable, is_of_source = isinstance(error, LookupUnavailable), isinstance(error, IncompleteResult)
            had_time = deadline.at_s - started_s >= limits.CIRCUIT_MIN_TIME_S
            if had_time or not is_unavailable:
                result = 'unavailable' if is_unavailable else 'failed'
                instruments.LOOKUP_SECONDS.observe(deadline.clock() - started_s, result)
                if self._failure_log.allow(log_key(source, error)):
                    LOG.error('Requests get 503: the lookup of %s failed: %s', source, error)
            environ[environ_keys.FAILURE] = environ_keys.Failure(503, f'the lookup failed: {error}', is_of_source)
            return error_responses.unavailable()
        result = ('none', 'one')[len(found)] if len(found) < 2 else 'several'
        instruments.LOOKUP_SECONDS.observe(deadline.clock() - started_s, result)
        if len(found) != 1:
            if self._not_found_log.allow((source.router_id, source.network_id, bool(found))):
                _log_not_found(source, found)
            reason = f'{len(found)} instances match: ports {_ports(found)}' if found else 'no instance has this address'
            environ[environ_keys.FAILURE] = environ_keys.Failure(404, reason)
            return error_responses.instance_not_found()
        environ[environ_keys.INSTANCE] = found[0]
        return None

    def _find(self, source: environ_keys.Source, deadline: Deadline) -> Sequence[environ_keys.Instance]:
        self._retry_budget.add_request()
        found = retry_until(
            lambda: self._lookup.find(source, deadline.fraction(ATTEMPT_TIME_SHARE)),
            deadline,
            service='lookup',
            retry_on=(LookupUnavailable,),
            may_retry=self._retry_budget.take_retry,
            sleep=self._sleep,
        )
        self._retry_budget.add_success()
        return found


def log_key(source: environ_keys.Source, error: InstanceLookupError) -> Hashable:
    """The key with which the log line of a failed lookup is throttled.

    It is the kind of failure. For a router or network that Neutron does not show, it also contains the id: such a
    failure may last for days, and must not suppress other log lines.
    """
    return (type(error), *((source.router_id, source.network_id) if isinstance(error, IncompleteResult) else ()))


def _log_not_found(source: environ_keys.Source, found: Sequence[environ_keys.Instance]) -> None:
    if found:
        LOG.warning('404 for %s, because %d instances match: ports %s', source, len(found), _ports(found))
    else:
        LOG.info('404 for %s, because no instance has this address', source)


def _ports(found: Sequence[environ_keys.Instance]) -> str:
    return ', '.join(sorted(f'{i.port_id} (instance {i.instance_id}, project {i.project_id})' for i in found))
