# SPDX-License-Identifier: Apache-2.0
"""The metrics of the programs: every metric with its labels and their values, in one list.

Rule 1: every package may import this module. It imports no other module of this package and no library. The code that
counts an event (``RETRIES.add('nova')``) does not depend on whether or how the metric is published.
Rule 2: until ``metrics.sink`` connects the instruments, each call does nothing, which takes 0.04 microseconds.
Rule 3: a label has few values. An instance cannot choose them: no label is an id, an address or a path.

The names of the metrics must not change, because dashboards and alert rules contain them. ``doc/reference_pages.py``
makes a page of this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANY: tuple[str, ...] = ()
"""For a label whose values are not known in advance."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 9.0)
"""Upper bounds of the buckets of each histogram. 9 s is the default deadline of a request."""

ALL: list[Instrument] = []
"""Every instrument, in the order of this module."""


def _ignore(*args: object) -> None:
    """The action of an instrument that is not connected: none."""


class Instrument:
    """A metric. ``labels``: the values of each label. ``across``: how the values of several workers are combined."""

    kind = ''

    def __init__(self, name: str, help: str, labels: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.name = name
        self.help = help
        self.labels = dict(labels or {})
        self.across = ''
        ALL.append(self)

    def connect(self, report: Any) -> None:
        """Call ``report`` for each later event. If ``report`` is None, ignore later events."""
        raise NotImplementedError


class Counter(Instrument):
    """Counts events: ``add(label value, ...)``."""

    kind = 'counter'

    def connect(self, report: Any) -> None:
        """From now on each ``add`` calls ``report(label value, ...)``."""
        self.add = report or _ignore

    add: Any = staticmethod(_ignore)


class Histogram(Instrument):
    """Counts durations: ``observe(seconds, label value, ...)``."""

    kind = 'histogram'

    def connect(self, report: Any) -> None:
        """From now on each ``observe`` calls ``report(seconds, label value, ...)``."""
        self.observe = report or _ignore

    observe: Any = staticmethod(_ignore)


class Gauge(Instrument):
    """A state of each worker: ``set(value, label value, ...)``. ``across``: sum, max or min of the live workers."""

    kind = 'gauge'

    def __init__(
        self, name: str, help: str, labels: Mapping[str, tuple[str, ...]] | None = None, *, across: str
    ) -> None:
        super().__init__(name, help, labels)
        self.across = across

    def connect(self, report: Any) -> None:
        """From now on each ``set`` calls ``report(value, label value, ...)``."""
        self.set = report or _ignore

    set: Any = staticmethod(_ignore)


PROGRAMS = ('agent', 'namespace_proxy')
MODES = ('shared', 'one_hop')

# --- Requests, from the client to Nova -----------------------------------------------------------------------------

REQUEST_SECONDS = Histogram(
    'metadata_wsgi_request_seconds',
    'Requests to the agent: seconds until the header of the response, by the stage that the request reached and the '
    'status of the response (fault: an unexpected exception).',
    {'reached': ('unidentified', 'source', 'instance', 'upstream'), 'status': ANY},
)
PROXIED_REQUESTS = Counter(
    'metadata_wsgi_namespace_proxy_requests_total',
    'Requests to a namespace proxy, by the status of the response.',
    {'status': ANY},
)
LOOKUP_SECONDS = Histogram(
    'metadata_wsgi_lookup_seconds',
    'Lookups of the instance of a request, without those that lookup_cache had in its cache: seconds, including '
    'retries. none and several: the client gets 404. unavailable and failed: the client gets 503.',
    {'result': ('one', 'none', 'several', 'unavailable', 'failed')},
)
SERVICE_SECONDS = Histogram(
    'metadata_wsgi_service_seconds',
    'Single requests to a service: seconds until its response. error: no response in time, or Nova answered 500, 502, '
    '503 or 504.',
    {'service': ('nova', 'neutron', 'keystone'), 'outcome': ('ok', 'error')},
)
RETRIES = Counter(
    'metadata_wsgi_retries_total',
    'Retries after a failed attempt. nova: request to Nova. lookup: lookup of an instance. agent: request of a '
    'namespace proxy to the agent.',
    {'service': ('nova', 'lookup', 'agent')},
)

# --- Services ------------------------------------------------------------------------------------------------------

TOKEN_RENEWALS = Counter(
    'metadata_wsgi_token_renewals_total',
    'Tokens requested from Keystone. rejected: Keystone refuses the credentials; unavailable: no valid response.',
    {'result': ('ok', 'rejected', 'unavailable')},
)
NOVA_HOST_FAILURES = Counter(
    'metadata_wsgi_nova_host_failures_total', 'Failed attempts at each host of nova_metadata_host.', {'host': ANY}
)
NOVA_HOST_SET_ASIDE = Gauge(
    'metadata_wsgi_nova_host_set_aside',
    '1 while a host of nova_metadata_host gets requests only if the other hosts fail, because it failed itself.',
    {'host': ANY},
    across='max',
)
CACHE_REQUESTS = Counter(
    'metadata_wsgi_cache_requests_total',
    'Requests to a cache. stale: an old entry was used because the lookup is unavailable.',
    {'cache': ('lookup', 'networks', 'response'), 'result': ('hit', 'miss', 'stale')},
)

# --- Server --------------------------------------------------------------------------------------------------------

REFUSED = Counter(
    'metadata_wsgi_refused_total',
    'Connections and requests that the server refused. connection_limit: the client has too many connections; '
    'idle_closed: an idle connection was closed for a new one; destination: a connection was not made to the metadata '
    'address; concurrency: a request got no slot in time (503); malformed: not a valid request (400, 414, 431, 501).',
    {'reason': ('connection_limit', 'idle_closed', 'destination', 'concurrency', 'malformed')},
)
CONNECTIONS = Gauge(
    'metadata_wsgi_connections', 'Open connections, counted each second.', {'program': PROGRAMS}, across='sum'
)
MAX_CONNECTIONS = Gauge(
    'metadata_wsgi_connections_max',
    'Connections that all workers together can serve at a time.',
    {'program': PROGRAMS},
    across='sum',
)
WORKERS = Gauge('metadata_wsgi_workers', 'Worker processes that serve.', {'program': PROGRAMS}, across='sum')
WORKER_STARTS = Counter('metadata_wsgi_worker_starts_total', 'Worker processes that started.', {'program': PROGRAMS})

# --- Keeper and attached namespaces --------------------------------------------------------------------------------

KEEPER_UP = Gauge(
    'metadata_wsgi_keeper_up',
    '1 while every worker of the mode is connected to the keeper.',
    {'mode': MODES},
    across='min',
)
ATTACHED = Gauge(
    'metadata_wsgi_attached',
    'Routers and networks whose listening sockets a worker of the mode serves.',
    {'mode': MODES, 'kind': ('router', 'network')},
    across='max',
)
LISTENERS = Gauge(
    'metadata_wsgi_listeners',
    'Listening sockets of the keeper that a worker of the mode serves.',
    {'mode': MODES},
    across='max',
)

# --- The programs themselves ---------------------------------------------------------------------------------------

DRAINED = Gauge(
    'metadata_wsgi_drained',
    '1 if the file of [healthcheck] disable_by_file_path existed at the last health check.',
    across='max',
)
BUILD_INFO = Gauge(
    'metadata_wsgi_build_info', 'Always 1; the labels are the versions.', {'version': ANY, 'python': ANY}, across='max'
)
