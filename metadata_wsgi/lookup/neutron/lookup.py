# SPDX-License-Identifier: Apache-2.0
"""The directory itself: finds instances, and notices when it can see none.

A role with too few rights is answered 200 with an empty list, as a router without guests is. So an empty
result is believed only while it is known, for ``VISIBILITY_CHECK_S``, that ports of other projects can be seen. And only
with networks of the router that were asked for just now: a network may have been added since.
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
from metadata_wsgi.lookup.neutron.auth import Grant
from metadata_wsgi.lookup.neutron.ports_api import OnQuery
from metadata_wsgi.lookup.protocol import StepCache
from metadata_wsgi.pipeline.environ_keys import Instance, Source

LOG = logging.getLogger(__name__)

VISIBILITY_CHECK_S = 60.0
SAMPLE = 500
SEES_ALL = frozenset({'admin', 'service', 'advsvc'})
"""Roles that Neutron's own policy lets see every project's ports."""


class CurrentGrant(Protocol):
    """Has the token; :class:`~metadata_wsgi.lookup.neutron.auth.Access` is the real one."""

    def grant(self, deadline: Deadline) -> Grant:
        """The current grant."""

    def distrust(self, grant: Grant, why: str) -> None:
        """Let go of it."""


class Api(Protocol):
    """Lists ports; :class:`~metadata_wsgi.lookup.neutron.ports_api.PortsApi` is the real one."""

    @property
    def access(self) -> CurrentGrant:
        """Under which right it asks."""

    def ports(
        self, query: queries.Query, deadline: Deadline, on_query: OnQuery, pages: int = ...
    ) -> Sequence[queries.Port]:
        """The ports that ``query`` selects."""

    def close(self) -> None:
        """Close the kept connections."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the directory could see when it was asked: ``ports`` of a sample, ``foreign`` of them other projects'."""

    endpoint: str
    roles: frozenset[str]
    ports: int
    foreign: int

    def __str__(self) -> str:
        roles = ', '.join(sorted(self.roles)) or 'none (no Keystone)'
        if self.foreign:
            return f'Quantum at {self.endpoint} shows ports of other projects; roles: {roles}'
        return f'Quantum at {self.endpoint} has no ports of other projects to show yet; roles: {roles}'


class NeutronLookup:
    """Finds instances through ``api``. ``networks_cache`` caches the networks of routers; None: each lookup queries them.

    ``on_query`` may be set: it is told of each query, for explanations.
    """

    def __init__(
        self, api: Api, *, networks_cache: StepCache | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.on_query: OnQuery = _log
        self._networks_cache = networks_cache
        self._api = api
        self._clock = clock
        self._sees_until_s = 0.0

    def find(self, source: Source, deadline: Deadline) -> tuple[Instance, ...]:
        """The instances that have the source's address behind its router or on its network.

        Raises LookupUnavailable when Quantum or Keystone is away, InstanceLookupError when it refuses us or
        shows us nothing.
        """
        networks, remembered = self._networks(source, deadline)
        found = self._at(source, networks, deadline)
        if not found and remembered and self._networks_cache is not None:
            now = self._networks_cache.refresh(
                source.router_id, networks, lambda until: self._ask_networks(source, until), deadline
            )
            if set(now) != set(networks):
                found = self._at(source, now, deadline)
        if not found and self._clock() >= self._sees_until_s:
            self.probe(deadline)
        return found

    def probe(self, deadline: Deadline) -> Sight:
        """Whether ports of other projects can be seen. InstanceLookupError when they cannot: no guest would be found.

        An empty cloud shows none either; a role that Neutron's own policy lets see all is then believed.
        """
        query = (('limit', str(SAMPLE)), ('fields', 'id'), ('fields', 'project_id'), ('fields', 'tenant_id'))
        ports = self._api.ports(query, deadline, self.on_query, pages=1)
        grant = self._api.access.grant(deadline)
        foreign = sum((port.get('project_id') or port.get('tenant_id')) != grant.project_id for port in ports)
        sight = Sight(grant.endpoint, grant.roles, len(ports), foreign)
        if not foreign and len(ports) < SAMPLE and grant.roles and not grant.roles & SEES_ALL:
            why = (
                f'Quantum shows no port of any other project to the roles {", ".join(sorted(grant.roles))}; '
                'give the user the role service (or admin) in its project'
            )
            # A token keeps the roles it was made with, so a new one is fetched before long.
            self._api.access.distrust(grant, why)
            raise InstanceLookupError(why)
        self._sees_until_s = self._clock() + VISIBILITY_CHECK_S
        return sight

    def close(self) -> None:
        """Close the kept connections."""
        self._api.close()

    def _networks(self, source: Source, deadline: Deadline) -> tuple[list[str], bool]:
        """The networks on which the source may be, and whether they are remembered ones."""
        asked = []

        def ask(until: Deadline) -> list[str]:
            asked.append(source)
            return self._ask_networks(source, until)

        if source.network_id:
            return [source.network_id], False
        if self._networks_cache is None:
            return ask(deadline), False
        networks: list[str] = self._networks_cache(source.router_id, ask, deadline)
        return networks, not asked

    def _ask_networks(self, source: Source, deadline: Deadline) -> list[str]:
        query = queries.networks_of(source.router_id or '')
        return queries.network_ids(self._api.ports(query, deadline, self.on_query))

    def _at(self, source: Source, networks: list[str], deadline: Deadline) -> tuple[Instance, ...]:
        ports = [
            port
            for query in queries.at(source.address, networks)
            for port in self._api.ports(query, deadline, self.on_query)
        ]
        return queries.instances_at(source.address, frozenset(networks), ports)


def _log(query: str, seconds: float, count: int) -> None:
    LOG.debug('%d ports from %s in %.1f ms', count, query, seconds * 1000)
