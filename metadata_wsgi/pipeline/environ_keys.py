# SPDX-License-Identifier: Apache-2.0
"""The facts that filters hand to each other, and the environ keys they travel under.

Rule 1: a fact is a frozen dataclass, written once, by the one filter that owns it.
Rule 2: a fact that is not known is absent (PEP 3333), never None; a filter that needs one says so
in ``REQUIRES`` and the order is checked at start, so it may read ``environ[KEY]`` plainly.
Rule 3: a client cannot forge a fact. A server turns header names into ``HTTP_*`` keys, so a dotted
lower-case key never comes from the wire.

============================  ==============  =====================================  =======================
key                           written by      read by                                absent means
============================  ==============  =====================================  =======================
``metadata_wsgi.namespace``   the worker      ``socket_source``, namespace proxy     not the keeper's socket
``metadata_wsgi.received_at`` the worker      ``deadline``, namespace proxy          another server; now
``metadata_wsgi.deadline``    ``deadline``    ``instance``, ``upstream``             refused at start
``metadata_wsgi.source``      ``source``      ``instance``, ``signature``            refused at start
``metadata_wsgi.forwarded``   ``source``      ``session_token``                      refused at start
``metadata_wsgi.instance``    ``instance``    ``signature``, ``metadata_app``        refused at start
============================  ==============  =====================================  =======================

``metadata_wsgi.other_signature`` is written by ``signature`` while the shared secret is being changed, and read by
``upstream``; absent, there is one secret.

The filter ``cache``, where it is named, reads the deadline and the source and writes the instance that it remembers,
in the name of ``instance``, which then has nothing to do; ``cache_answers`` reads all three.

``FORWARDED`` is a bool: whether the guest itself said for whom it asks (``X-Forwarded-For``), as a proxy in it does.
``SIGNED`` is no key: it names, for the check of the order only, that the request now carries the
headers that Nova authenticates by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NAMESPACE = 'metadata_wsgi.namespace'
RECEIVED_AT_S = 'metadata_wsgi.received_at'
"""When the header was complete, in seconds of time.monotonic(): the deadline of a request counts from then."""
DEADLINE = 'metadata_wsgi.deadline'
SOURCE = 'metadata_wsgi.source'
FORWARDED = 'metadata_wsgi.forwarded'
INSTANCE = 'metadata_wsgi.instance'
OTHER_SIGNATURE = 'metadata_wsgi.other_signature'
SIGNED = 'the signature'


@dataclass(frozen=True, slots=True)
class Namespace:
    """Which namespace a connection came in: told by the socket it was accepted on, never by its bytes.

    Exactly one of ``router_id`` and ``network_id`` is set.
    """

    router_id: str | None = None
    network_id: str | None = None

    @property
    def id(self) -> str:
        """The one that is set."""
        return self.router_id or self.network_id or ''


@dataclass(frozen=True, slots=True)
class Source:
    """Who is asking, by network position: an address that is unique only behind its router.

    ``address`` is canonical text without a zone (lower case, compressed; a v4-mapped address is
    given as IPv4). Exactly one of ``router_id`` and ``network_id`` is set.
    """

    address: str
    router_id: str | None = None
    network_id: str | None = None

    def __str__(self) -> str:
        where = f'router {self.router_id}' if self.router_id else f'network {self.network_id}'
        return f'{self.address} behind {where}'


@dataclass(frozen=True, slots=True)
class Instance:
    """Which instance that is: ids as Quantum's port gives them (``device_id``, ``project_id``, ``id``).

    ``created_at_s``: when the port was created, in seconds since 1970; None where the directory does not say.
    """

    instance_id: str
    project_id: str
    port_id: str
    created_at_s: float | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f'{self.instance_id} of project {self.project_id}, port {self.port_id}'
