# SPDX-License-Identifier: Apache-2.0
"""Finds instances through the ports of Neutron, and detects credentials that cannot see all ports.

If the credentials have too few rights, Neutron responds 200 with an empty list, as for a router without instances. So
an empty list means 404 for the client only in the following two cases. In all other cases the lookup fails (503).

- (1) A check in the last ``VISIBILITY_CHECK_INTERVAL_S`` has found ports of other projects. And (2) by Neutron's
  default policy the role may see all ports (``ROLES_THAT_SEE_ALL``). With other roles a user may see foreign ports too:
  those on the networks of the user's project, for example on a shared network.
- Only (1) or only (2) is true, for example in a new cloud, and Neutron shows an interface of the request's router, or a
  port on the request's network.

If a lookup with cached networks of the router finds nothing, the networks are queried again, because a network may have
been added.

A Neutron that has just started may leave out ports for about a second, also for an administrator. It accepts requests
before all policy rules are registered, and checks the rules for one port after the other (``neutron.policy.init``;
measured with Neutron 29: 12 of 12 starts under load gave shortened lists with status 200). So an empty result is
confirmed by a second search. This search also selects a reference port: a port of the router, or of another service of
Neutron, on the same network. The reference port is first in the list. If it is there, Neutron has checked the ports
after it with all rules. If it is missing, or if the networks of the router have changed, the lookup fails with
LookupUnavailable, and the caller retries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from metadata_wsgi import limits
from metadata_wsgi.cache.process_shared import SharedPause
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import IncompleteResult, InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron import queries
from metadata_wsgi.lookup.neutron.auth import Token
from metadata_wsgi.lookup.neutron.batching import QueryBatcher
from metadata_wsgi.lookup.neutron.ports_api import OnQuery
from metadata_wsgi.lookup.neutron.queries import Port
from metadata_wsgi.lookup.protocol import StepCache
from metadata_wsgi.pipeline.environ_keys import Instance, Source
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

VISIBILITY_CHECK_INTERVAL_S = 60.0
SAMPLE_SIZE = 100
"""Largest number of ports that a visibility check queries. Each port costs Neutron 2 to 3 ms of CPU time."""
ROLES_THAT_SEE_ALL = frozenset({'admin', 'service', 'advsvc'})
"""By Neutron's default policy these roles may list the ports of all projects."""


MAX_CONFIRMED_NETWORKS = 40
MAX_CONFIRMATION_LENGTH = 2400
"""As ``queries.MAX_QUERY_LENGTH``: the networks and addresses of one confirmation fit into one URL."""

_AddressKey = tuple[tuple[str, str], tuple[str, ...]]
"""The filter for an address, and the networks on which the address is searched."""
_ConfirmationKey = tuple[tuple[tuple[str, str], ...], tuple[str, ...]]
"""The filters for an address and for a reference port, and the networks on which the address is searched."""


class TokenProvider(Protocol):
    """Provides the token. Implemented by :class:`~metadata_wsgi.lookup.neutron.auth.Authenticator`."""

    rejection_pause: SharedPause

    def token(self, deadline: Deadline) -> Token:
        """The current token."""

    def invalidate(self, token: Token, reason: str) -> None:
        """Discard the token."""


class PortsClient(Protocol):
    """Lists ports. Implemented by :class:`~metadata_wsgi.lookup.neutron.ports_api.PortsApi`."""

    @property
    def auth(self) -> TokenProvider:
        """The provider of the token for the requests."""

    def ports(self, query: queries.Query, deadline: Deadline, on_query: OnQuery, pages: int = ...) -> Sequence[Port]:
        """The ports that ``query`` selects."""

    def network_owners(self, deadline: Deadline, on_query: OnQuery) -> Sequence[str]:
        """The project ids of the networks that Neutron lists in ``network-ip-availabilities``."""

    def close(self) -> None:
        """Close the idle connections."""


@dataclass(frozen=True, slots=True)
class VisibilityCheck:
    """Result of a visibility check. Neutron showed ``ports`` ports; ``foreign`` of these belong to other projects.

    ``networks``: if ``foreign`` is 0, the number of networks of other projects in ``network-ip-availabilities``.
    """

    endpoint: str
    roles: frozenset[str]
    ports: int
    foreign: int
    networks: int = 0

    @property
    def sees_all_by_default(self) -> bool:
        """Whether the roles may see all ports by Neutron's default policy. True without Keystone: no role is known."""
        return not self.roles or bool(self.roles & ROLES_THAT_SEE_ALL)

    @property
    def is_proven(self) -> bool:
        """Whether Neutron has shown ports of other projects to a role that may see all ports.

        If not, there may be no such ports, or the role may see only a part of the ports.
        """
        return self.foreign > 0 and self.sees_all_by_default

    @property
    def is_likely(self) -> bool:
        """Whether Neutron has shown ports or networks of other projects to a role that may see all ports.

        Networks alone do not prove that an empty list of ports is complete: Neutron's policy may hide ports.
        """
        return self.is_proven or (self.networks > 0 and self.sees_all_by_default)

    def __str__(self) -> str:
        roles = ', '.join(sorted(self.roles)) or 'none (no Keystone)'
        if self.is_proven:
            return f'Neutron at {self.endpoint} shows ports of other projects; roles: {roles}'
        if self.is_likely:
            return (
                f'Neutron at {self.endpoint} shows networks of other projects, which have no ports yet; roles: {roles}'
            )
        if self.foreign:
            return (
                f'Neutron at {self.endpoint} shows ports of other projects to the roles {roles}, but by its default '
                'policy only those on networks of their own project: give the user the role service (or admin) in its '
                'project. Ignore this if your policy shows all ports to one of these roles'
            )
        return (
            f'Neutron at {self.endpoint} shows no ports of other projects to the roles {roles}: either there are none '
            'yet, or its policy hides them. The role service needs Neutron 2023.2 or later; admin works with all. '
            'Boot an instance in another project and check again'
        )


class NeutronLookup:
    """Finds instances through ``api``.

    ``networks_cache`` caches the networks of routers. Without this cache each lookup queries the networks.
    ``credentials`` is a text for the operator: the user and the option that the credentials come from. The attributes
    ``on_query`` and ``on_other_port`` may be replaced; by default they log. ``on_query`` is called after each query.
    ``on_other_port`` is called with a sentence about each port that has the address but belongs to no instance.
    """

    def __init__(
        self,
        api: PortsClient,
        *,
        networks_cache: StepCache | None = None,
        credentials: str = '',
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.credentials = credentials
        self.on_query: OnQuery = _log_query
        self.on_other_port: Callable[[str], object] = self._log_other_port
        self._networks_cache = networks_cache
        self._api = api
        self._clock = clock
        self._visibility: VisibilityCheck | None = None
        self._visibility_valid_until_s = 0.0
        self._visibility_lock = threading.Lock()
        self._other_port_log = Throttle(limits.LOG_INTERVAL_S, clock)
        self._router_queries = QueryBatcher(
            self._query_routers, filters_of=queries.router_filters, max_length=queries.MAX_QUERY_LENGTH
        )
        # By the kind of filter: Neutron combines filters of different kinds with "and".
        self._address_queries = {
            kind: QueryBatcher(self._query_addresses, filters_of=_filters_of, max_length=queries.MAX_QUERY_LENGTH)
            for kind in ('fixed_ips', 'mac_address')
        }
        self._service_port_queries = QueryBatcher(
            self._query_service_ports,
            filters_of=lambda network_id: [('network_id', network_id)],
            max_length=queries.MAX_QUERY_LENGTH,
        )
        self._confirmations = {
            kind: QueryBatcher(
                self._query_confirmed, filters_of=_filters_of_confirmation, max_length=MAX_CONFIRMATION_LENGTH
            )
            for kind in ('fixed_ips', 'mac_address')
        }

    def find(self, source: Source, deadline: Deadline) -> tuple[Instance, ...]:
        """Return the instances that have the source's address behind its router or on its network.

        Raises LookupUnavailable if Neutron or Keystone is unavailable. Raises IncompleteResult if Neutron does not show
        ports that it has shown before, or no port of the router or network. Raises InstanceLookupError if Neutron or
        Keystone rejects the credentials, or if Neutron may hide ports from the agent.
        """
        if source.network_id:
            networks = [source.network_id]
            found = self._query_instances(source, networks, deadline)
        else:
            found, networks = self._find_behind_router(source, deadline)
        return found or self._confirm_empty_result(source, networks, deadline)

    def probe(self, deadline: Deadline) -> VisibilityCheck:
        """Query a sample of ports. Raises InstanceLookupError if the token's role or scope cannot see instances.

        In a new cloud there are no ports of other projects. Then, if the role may see all ports, no error is raised,
        and ``is_proven`` of the result is False.
        """
        query = (('limit', str(SAMPLE_SIZE)), ('fields', 'id'), ('fields', 'project_id'), ('fields', 'tenant_id'))
        ports = self._api.ports(query, deadline, self.on_query, pages=1)
        token = self._api.auth.token(deadline)
        foreign = sum((port.get('project_id') or port.get('tenant_id')) != token.project_id for port in ports)
        reason = '' if foreign or len(ports) >= SAMPLE_SIZE else _blindness(token)
        if reason:
            # A token keeps its roles, even if the user gets other roles. So a new token is fetched soon.
            self._api.auth.invalidate(token, reason)
            raise InstanceLookupError(reason)
        networks = 0 if foreign else self._count_foreign_networks(token, deadline)
        result = VisibilityCheck(token.endpoint, token.roles, len(ports), foreign, networks)
        self._visibility = result
        self._visibility_valid_until_s = self._clock() + VISIBILITY_CHECK_INTERVAL_S
        return result

    def _count_foreign_networks(self, token: Token, deadline: Deadline) -> int:
        try:
            owners = self._api.network_owners(deadline, self.on_query)
        except LookupUnavailable:
            raise
        except InstanceLookupError:
            return 0  # a Neutron without this extension
        return sum(owner != token.project_id for owner in owners)

    def _confirm_empty_result(self, source: Source, searched: list[str], deadline: Deadline) -> tuple[Instance, ...]:
        """Search ``source`` again, with reference ports on its networks. ``searched`` are the networks searched so far.

        Raises InstanceLookupError if Neutron may hide an instance from the agent. Raises IncompleteResult if the lists
        of Neutron contradict each other.
        """
        visibility = self._current_visibility(deadline)
        if source.network_id:
            references = self._service_port_queries.ports(source.network_id, deadline)
            references = [port for port in references if port.get('network_id') == source.network_id]
            networks = [source.network_id]
            is_visible = bool(references) or bool(
                self._api.ports(queries.any_port_query(source.network_id), deadline, self.on_query, pages=1)
            )
        else:
            router_id = source.router_id or ''
            references = self._router_queries.ports(router_id, deadline)
            references = [port for port in references if port.get('device_id') == router_id]
            networks = queries.networks_behind(queries.router_networks(router_id, references), source.interface)
            is_visible = bool(references)
        if not is_visible:
            place = f'network {source.network_id}' if source.network_id else f'router {source.router_id}'
            error = IncompleteResult if visibility.is_proven else InstanceLookupError
            raise error(f'Neutron shows no port of {place}, which sent a request. {visibility}')
        if set(searched) != set(networks):
            raise IncompleteResult(
                f'Neutron shows {len(searched)}, then {len(networks)} networks of router {source.router_id}: it may be '
                'starting'
            )
        return self._query_confirmation(source, networks, references, deadline)

    def _query_confirmation(
        self, source: Source, networks: Sequence[str], references: Sequence[Port], deadline: Deadline
    ) -> tuple[Instance, ...]:
        address_filter = queries.address_filter(source.address)
        kind = address_filter[0]
        by_network: dict[str, tuple[str, tuple[str, str]]] = {}
        for port in references:
            network, port_id = port.get('network_id'), port.get('id')
            reference_filter = queries.reference_filter(port, kind)
            if network and port_id and reference_filter:
                by_network.setdefault(network, (port_id, reference_filter))
        shown: list[Port] = []
        for first in range(0, len(networks), MAX_CONFIRMED_NETWORKS):
            batch = networks[first : first + MAX_CONFIRMED_NETWORKS]
            # Only the first reference port of a batch: each port costs Neutron 2 to 3 ms.
            chosen = next((by_network[network] for network in batch if network in by_network), None)
            filters = (address_filter,) if chosen is None else (address_filter, chosen[1])
            ports = self._confirmations[kind].ports((filters, tuple(batch)), deadline)
            if chosen is not None and chosen[0] not in {port.get('id') for port in ports}:
                raise IncompleteResult(f'Neutron no longer shows port {chosen[0]}: it may be starting')
            shown += ports
        return queries.matching_instances(source.address, frozenset(networks), shown)

    def _current_visibility(self, deadline: Deadline) -> VisibilityCheck:
        """The result of the last visibility check. If it is too old, concurrent lookups wait for one new check."""
        if not self._visibility_lock.acquire(timeout=deadline.remaining_s()):
            raise LookupUnavailable('the deadline passed during a check of the ports that Neutron shows')
        try:
            result = self._visibility
            if result is None or self._clock() >= self._visibility_valid_until_s:
                result = self.probe(deadline)
            return result
        finally:
            self._visibility_lock.release()

    def use_pause(self, pause: SharedPause) -> None:
        """Replace the pause after rejected credentials by ``pause``, which all workers share."""
        self._api.auth.rejection_pause = pause

    def close(self) -> None:
        """Close the idle connections."""
        self._api.close()

    def _find_behind_router(self, source: Source, deadline: Deadline) -> tuple[tuple[Instance, ...], list[str]]:
        """The instances that match ``source``, and the ids of the networks that were searched."""
        router, cached = self._router_networks(source, deadline)
        networks = queries.networks_behind(router, source.interface)
        found = self._query_instances(source, networks, deadline)
        if not found and cached and self._networks_cache is not None:
            router = self._networks_cache.refresh(
                source.router_id, router, lambda until: self._query_router(source, until), deadline
            )
            current = queries.networks_behind(router, source.interface)
            if set(current) != set(networks):
                networks = current
                found = self._query_instances(source, networks, deadline)
        return found, networks

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
        router_id = source.router_id or ''
        return queries.router_networks(router_id, self._router_queries.ports(router_id, deadline))

    def _query_routers(self, router_ids: Sequence[str], deadline: Deadline) -> Sequence[Port]:
        return self._api.ports(queries.router_ports_query(router_ids), deadline, self.on_query)

    def _query_service_ports(self, network_ids: Sequence[str], deadline: Deadline) -> Sequence[Port]:
        return self._api.ports(queries.service_ports_query(network_ids), deadline, self.on_query)

    def _query_confirmed(self, keys: Sequence[_ConfirmationKey], deadline: Deadline) -> Sequence[Port]:
        filters = dict.fromkeys(one for filters, _ in keys for one in filters)
        networks = dict.fromkeys(network for _, networks in keys for network in networks)
        return self._api.ports(queries.confirmation_query(filters, networks), deadline, self.on_query)

    def _query_addresses(self, keys: Sequence[_AddressKey], deadline: Deadline) -> Sequence[Port]:
        filters = dict.fromkeys(address_filter for address_filter, _ in keys)
        networks = list(dict.fromkeys(network for _, networks in keys for network in networks))
        return [
            port
            for query in queries.ports_queries(filters, networks)
            for port in self._api.ports(query, deadline, self.on_query)
        ]

    def _query_instances(self, source: Source, networks: list[str], deadline: Deadline) -> tuple[Instance, ...]:
        if not networks:
            return ()
        address_filter = queries.address_filter(source.address)
        ports = self._address_queries[address_filter[0]].ports((address_filter, tuple(networks)), deadline)
        found = queries.matching_instances(source.address, frozenset(networks), ports)
        if not found:
            for port in queries.other_ports(source.address, frozenset(networks), ports):
                self.on_other_port(
                    f'port {port.get("id")} on network {port.get("network_id")} has the address {source.address}, but '
                    f'belongs to no instance: device_owner {port.get("device_owner")!r}, '
                    f'device_id {port.get("device_id")!r}'
                )
        return found

    def _log_other_port(self, text: str) -> None:
        if self._other_port_log.allow():
            LOG.info('No instance is at the address of a request: %s', text)


def _filters_of_confirmation(key: _ConfirmationKey) -> list[tuple[str, str]]:
    return [*key[0], *(('network_id', network) for network in key[1])]


def _filters_of(key: _AddressKey) -> list[tuple[str, str]]:
    address_filter, networks = key
    return [address_filter, *(('network_id', network) for network in networks)]


def _blindness(token: Token) -> str:
    """The reason why ``token`` cannot see instances of other projects; '' if its scope and roles allow that."""
    if token.is_from_keystone and token.project_id is None:
        return (
            'the token has no project (system scope, or none), and Neutron shows no ports to it; '
            'set the project of the user (admin_tenant_name, project_name)'
        )
    if token.roles and not token.roles & ROLES_THAT_SEE_ALL:
        return (
            f'Neutron shows no port of any other project to the roles {", ".join(sorted(token.roles))}; '
            'give the user the role service (or admin) in its project'
        )
    return ''


def _log_query(query: str, seconds: float, count: int) -> None:
    LOG.debug('%d ports from %s in %.1f ms', count, query, seconds * 1000)
