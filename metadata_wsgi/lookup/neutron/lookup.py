# SPDX-License-Identifier: Apache-2.0
"""Finds instances through the ports of Neutron, and detects a role that cannot see them.

The response to a role with too few rights is 200 with an empty list, the same as for a router without instances. So
an empty result is accepted only if a check in the last ``VISIBILITY_CHECK_INTERVAL_S`` has shown ports of other
projects. And only with networks of the router that were queried just now, not cached: a network may have been added
since.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError
from metadata_wsgi.lookup.neutron import queries
from metadata_wsgi.lookup.neutron.auth import Token
from metadata_wsgi.lookup.neutron.ports_api import OnQuery
from metadata_wsgi.lookup.protocol import StepCache
from metadata_wsgi.pipeline.environ_keys import Instance, Source

LOG = logging.getLogger(__name__)

VISIBILITY_CHECK_INTERVAL_S = 60.0
SAMPLE_SIZE = 500
"""Ports that a visibility check queries."""
ROLES_THAT_SEE_ALL = frozenset({'admin', 'service', 'advsvc'})
"""Roles that may list every project's ports by Neutron's default policy."""


class TokenProvider(Protocol):
    """Holds the token; :class:`~metadata_wsgi.lookup.neutron.auth.Authenticator` is the real one."""

    def token(self, deadline: Deadline) -> Token:
        """The current token."""

    def invalidate(self, token: Token, reason: str) -> None:
        """Discard the token."""


class PortsClient(Protocol):
    """Lists ports; :class:`~metadata_wsgi.lookup.neutron.ports_api.PortsApi` is the real one."""

    @property
    def auth(self) -> TokenProvider:
        """The source of its tokens."""

    def ports(
        self, query: queries.Query, deadline: Deadline, on_query: OnQuery, pages: int = ...
    ) -> Sequence[queries.Port]:
        """The ports that ``query`` selects."""

    def close(self) -> None:
        """Close the idle connections."""


@dataclass(frozen=True, slots=True)
class VisibilityCheck:
    """Result of a visibility check: a sample of ``ports`` ports, ``foreign`` of them of other projects."""

    endpoint: str
    roles: frozenset[str]
    ports: int
    foreign: int

    def __str__(self) -> str:
        roles = ', '.join(sorted(self.roles)) or 'none (no Keystone)'
        if self.foreign:
            return f'Neutron at {self.endpoint} shows ports of other projects; roles: {roles}'
        return f'Neutron at {self.endpoint} has no ports of other projects to show yet; roles: {roles}'


class NeutronLookup:
    """Finds instances through ``api``.

    ``networks_cache`` caches the networks of routers; without it each lookup queries them. The attribute ``on_query``
    may be set: it is called after each query, for explanations.
    """

    def __init__(
        self, api: PortsClient, *, networks_cache: StepCache | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.on_query: OnQuery = _log_query
        self._networks_cache = networks_cache
        self._api = api
        self._clock = clock
        self._visibility_valid_until_s = 0.0

    def find(self, source: Source, deadline: Deadline) -> tuple[Instance, ...]:
        """Return the instances that have the source's address behind its router or on its network.

        Raises LookupUnavailable when Neutron or Keystone is unavailable, InstanceLookupError when one of them
        rejects the agent or Neutron shows it no ports.
        """
        if source.network_id:
            found = self._query_instances(source, [source.network_id], deadline)
        else:
            found = self._find_behind_router(source, deadline)
        if not found and self._clock() >= self._visibility_valid_until_s:
            self.probe(deadline)
        return found

    def probe(self, deadline: Deadline) -> VisibilityCheck:
        """Check that ports of other projects are visible. InstanceLookupError if not: no instance would be found.

        An empty cloud shows none either. Then a role that Neutron's default policy lets see all is accepted.
        """
        query = (('limit', str(SAMPLE_SIZE)), ('fields', 'id'), ('fields', 'project_id'), ('fields', 'tenant_id'))
        ports = self._api.ports(query, deadline, self.on_query, pages=1)
        token = self._api.auth.token(deadline)
        foreign = sum((port.get('project_id') or port.get('tenant_id')) != token.project_id for port in ports)
        result = VisibilityCheck(token.endpoint, token.roles, len(ports), foreign)
        if not foreign and len(ports) < SAMPLE_SIZE and token.roles and not token.roles & ROLES_THAT_SEE_ALL:
            reason = (
                f'Neutron shows no port of any other project to the roles {", ".join(sorted(token.roles))}; '
                'give the user the role service (or admin) in its project'
            )
            # A token keeps the roles that it was issued with. So a new one is fetched soon.
            self._api.auth.invalidate(token, reason)
            raise InstanceLookupError(reason)
        self._visibility_valid_until_s = self._clock() + VISIBILITY_CHECK_INTERVAL_S
        return result

    def close(self) -> None:
        """Close the idle connections."""
        self._api.close()

    def _find_behind_router(self, source: Source, deadline: Deadline) -> tuple[Instance, ...]:
        router, cached = self._router_networks(source, deadline)
        networks = queries.networks_behind(router, source.interface)
        found = self._query_instances(source, networks, deadline)
        if found or not cached or self._networks_cache is None:
            return found
        router = self._networks_cache.refresh(
            source.router_id, router, lambda until: self._query_router(source, until), deadline
        )
        current = queries.networks_behind(router, source.interface)
        return self._query_instances(source, current, deadline) if set(current) != set(networks) else ()

    def _router_networks(self, source: Source, deadline: Deadline) -> tuple[list[queries.RouterNetwork], bool]:
        """The interfaces and networks of the router, and whether they come from the cache."""
        if self._networks_cache is None:
            return self._query_router(source, deadline), False
        cached = True

        def query(until: Deadline) -> list[queries.RouterNetwork]:
            nonlocal cached
            cached = False
            return self._query_router(source, until)

        router: list[queries.RouterNetwork] = self._networks_cache(source.router_id, query, deadline)
        return router, cached

    def _query_router(self, source: Source, deadline: Deadline) -> list[queries.RouterNetwork]:
        query = queries.router_ports_query(source.router_id or '')
        return queries.router_networks(self._api.ports(query, deadline, self.on_query))

    def _query_instances(self, source: Source, networks: list[str], deadline: Deadline) -> tuple[Instance, ...]:
        ports = [
            port
            for query in queries.ports_queries(source.address, networks)
            for port in self._api.ports(query, deadline, self.on_query)
        ]
        return queries.matching_instances(source.address, frozenset(networks), ports)


def _log_query(query: str, seconds: float, count: int) -> None:
    LOG.debug('%d ports from %s in %.1f ms', count, query, seconds * 1000)
