# SPDX-License-Identifier: Apache-2.0
"""The WSGI environ keys with which filters pass data to each other, and the dataclasses of their values.

Rule 1: each key is written by one filter, once for each request, and its value is not changed afterwards. Exception:
when ``lookup_cache`` calls the later filters a second time, it replaces INSTANCE and removes the keys of those filters.
Rule 2: if a value is unknown, the key is missing (PEP 3333). A value is never None. A filter that needs a key names it
in ``REQUIRES``. The order of the pipeline is checked at start, so the filter may read ``environ[KEY]`` without a check.
Rule 3: a client cannot set these keys. A server converts headers to ``HTTP_*`` keys, so a lower-case key with a dot
never comes from a request.

================================== ================== ============================================ ==================
key                                written by         read by                                      if it is missing
================================== ================== ============================================ ==================
``metadata_wsgi.received_at``      the worker         ``deadline``, the namespace proxy            the deadline counts
                                                                                                   from the call of the
                                                                                                   filter ``deadline``
``metadata_wsgi.request_id``       ``request_id``     ``upstream``, ``catch_errors``               no id in log lines
                                                                                                   and at Nova
``metadata_wsgi.namespace``        the worker         ``socket_source``, ``healthcheck``, the      the connection came
                                                      namespace proxy, the agent                   over the unix socket
``metadata_wsgi.client_closed``    the worker         ``upstream``                                 the connection is not
                                                                                                   from a unix socket
``metadata_wsgi.deadline``         ``deadline``       ``lookup_cache``, ``instance``,              start is refused
                                                      ``response_cache``, ``upstream``
``metadata_wsgi.source``           ``header_source``  ``lookup_cache``, ``instance``,              start is refused
                                   or                 ``response_cache``, ``rate_limit``,
                                   ``socket_source``  ``signature``, ``request_log``
``metadata_wsgi.forwarded``        as above:          ``session_token``                            start is refused
                                   ``header_source``
                                   or
                                   ``socket_source``
``metadata_wsgi.instance``         ``instance`` or    ``rate_limit``, ``session_token``,           start is refused
                                   ``lookup_cache``   ``path_policy``, ``response_cache``,
                                                      ``signature``, ``request_log``
``metadata_wsgi.signed_identity``  ``signature``      ``upstream``, ``metadata``                   start is refused
                                                                                                   (``upstream``); the
                                                                                                   app ``metadata``
                                                                                                   reads the headers
``metadata_wsgi.failure``          the filter or app  the server: ``status --failures``            no failure, or the
                                   that refuses the                                                filter records no
                                   request                                                         failures
================================== ================== ============================================ ==================

After the response, ``metrics`` and ``healthcheck`` check which of these keys exist (``outcome.stage_reached``).
``otel`` and the server also read the ids in SOURCE and INSTANCE at that time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NAMESPACE = 'metadata_wsgi.namespace'
"""A :class:`Namespace`."""

RECEIVED_AT_S = 'metadata_wsgi.received_at'
"""The time at which the header of the request had arrived, in seconds of time.monotonic(). The deadline counts from it.
For the first request of a connection, the time that the connection waited to be accepted is subtracted."""

REQUEST_ID = 'metadata_wsgi.request_id'
"""The id of the request, ``req-`` and a UUID."""

CLIENT_HAS_CLOSED = 'metadata_wsgi.client_closed'
"""A function without arguments: whether the namespace proxy has closed its connection. Then the instance has got 503,
and may repeat the request."""

DEADLINE = 'metadata_wsgi.deadline'
"""A :class:`metadata_wsgi.deadline.Deadline`."""

SOURCE = 'metadata_wsgi.source'
"""A :class:`Source`."""

CLIENT_IS_PROXY = 'metadata_wsgi.forwarded'
"""A bool: whether the client sent ``X-Forwarded-For`` or ``Forwarded``, as a proxy in an instance does."""

INSTANCE = 'metadata_wsgi.instance'
"""An :class:`Instance`."""

SIGNED_IDENTITY = 'metadata_wsgi.signed_identity'
"""A :class:`SignedIdentity`."""

FAILURE = 'metadata_wsgi.failure'
"""A :class:`Failure`. Only the filter or app that makes the response writes it."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """The network namespace of a connection. It is known from the listening socket and not from data of the client.

    Exactly one of ``router_id`` and ``network_id`` is set.
    """

    router_id: str | None = None
    network_id: str | None = None

    @property
    def id(self) -> str:
        """The id of the router or network."""
        return self.router_id or self.network_id or ''


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a request: an IP address, and the router or network on which the address is unique.

    ``address`` is the canonical text without a zone (lower case, compressed; a v4-mapped address as IPv4). Exactly one
    of ``router_id`` and ``network_id`` is set.

    ``interface`` is set for an IPv6 link-local address: the interface of the namespace on which the request arrived.
    Such an address is unique on its link only, and a router has several links. ``interface`` is None for other
    addresses, and if the namespace proxy does not send the interface (haproxy).
    """

    address: str
    router_id: str | None = None
    network_id: str | None = None
    interface: str | None = None

    def __str__(self) -> str:
        where = f'router {self.router_id}' if self.router_id else f'network {self.network_id}'
        zone = f'%{self.interface}' if self.interface else ''
        return f'{self.address}{zone} behind {where}'


@dataclass(frozen=True, slots=True)
class Instance:
    """The instance that sent a request. The ids are from its Neutron port (``device_id``, ``project_id``, ``id``).

    ``created_at_s`` is the creation time of the port, in seconds since 1970; None if it is unknown.
    """

    instance_id: str
    project_id: str
    port_id: str
    created_at_s: float | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f'{self.instance_id} of project {self.project_id}, port {self.port_id}'


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a request failed: one sentence for the operator, without secrets.

    ``status`` is the status of the response, 0 for a response that was cut off. ``is_of_source``: the lists of Neutron
    lack ports of the router or network of the request. Requests of other routers and networks may succeed.
    """

    status: int
    reason: str
    is_of_source: bool = False


@dataclass(frozen=True, slots=True)
class SignedIdentity:
    """The signed identity for Nova: the instance, its address and the signature of the instance id.

    ``signatures`` has one signature for each shared secret, that of the new secret first. There are two while the
    secret is being changed. The app at the end of the pipeline converts the signed identity to headers.
    """

    instance: Instance
    address: str
    signatures: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        plural = '' if len(self.signatures) == 1 else 's'
        return f'{len(self.signatures)} signature{plural} of {self.instance.instance_id}'
