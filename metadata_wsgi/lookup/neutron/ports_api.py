# SPDX-License-Identifier: Apache-2.0
"""``GET <endpoint>/v2.0/ports?...``: the port list of Neutron.

Temporary errors (LookupUnavailable): no connection, no response in time, 408, 425, 429, 5xx, and a response that is
not a list of ports. The caller retries. Permanent errors (InstanceLookupError): 401 even with a new token, 403, 404,
and a redirect. Redirects are not followed, because their target would get the token. No error text contains a token or
the body of a response.

A query has the id of the client's request in ``X-Openstack-Request-Id``. Neutron logs the id. A query for the requests
of several clients has the id of one of these requests.

While Neutron accepts no connections, only one query at a time tries to connect (circuit breaker). All other queries
fail at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from keystoneauth1 import exceptions

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.http.circuit_breaker import CircuitBreaker
from metadata_wsgi.lookup.neutron.auth import Authenticator, Token
from metadata_wsgi.lookup.neutron.queries import FIELDS, Port, Query
from metadata_wsgi.lookup.neutron.transport import deadline_scope, describe, is_without_connection
from metadata_wsgi.pipeline import request_id

MAX_PAGES = 100
"""Largest number of pages of one query, if the server limits the size of a page."""
RETRYABLE_STATUSES = frozenset({408, 425, 429})
"""Statuses, in addition to every 5xx, after which a retry may succeed."""
AVAILABILITIES, FOUND = 'network-ip-availabilities', 'network_ip_availabilities'
AVAILABILITIES_QUERY: Query = (('fields', 'project_id'), ('fields', 'tenant_id'))
HEADERS = {'Accept': 'application/json', 'Accept-Encoding': 'identity'}

OnQuery = Callable[[str, float, int], object]
"""Called after each query with its URL, its duration in seconds and the number of ports."""


class PortsApi:
    """Lists ports, at most ``connections`` queries at a time. Shared by all threads of a worker."""

    def __init__(
        self, session: Any, auth: Authenticator, *, connections: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._circuit = CircuitBreaker(clock)
        self._slots = threading.BoundedSemaphore(connections)
        self.auth = auth

    def ports(self, query: Query, deadline: Deadline, on_query: OnQuery, pages: int = MAX_PAGES) -> list[Port]:
        """Return the ports that ``query`` selects, from at most ``pages`` pages.

        Raises LookupUnavailable or InstanceLookupError, before ``deadline``. More than MAX_PAGES pages are an error.
        """
        found: list[Port] = []
        for _ in range(pages):
            started_s = time.monotonic()
            body = _parse_ports(*self._get_list('ports', query, deadline))
            found += body['ports']
            on_query(f'GET /v2.0/ports?{urlencode(query)}', time.monotonic() - started_s, len(body['ports']))
            next_query = _next_page_query(body)
            if not next_query:
                return found
            query = next_query
        if pages == MAX_PAGES:
            raise InstanceLookupError(
                f'The response of Neutron to one query has more than {MAX_PAGES} pages; raise its page size'
            )
        return found

    def network_owners(self, deadline: Deadline, on_query: OnQuery) -> list[str]:
        """The project id of each network that Neutron lists in ``network-ip-availabilities``.

        By Neutron's default policy only the roles admin and service see this list, with the networks of all projects.
        Raises the exceptions of ``ports``. A Neutron without this extension responds 404: InstanceLookupError.
        """
        started_s = time.monotonic()
        response, token = self._get_list(AVAILABILITIES, AVAILABILITIES_QUERY, deadline)
        try:
            found = [network.get('project_id') or network.get('tenant_id') for network in response.json()[FOUND]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LookupUnavailable(f'The response of Neutron at {token.endpoint} is not a list of networks') from None
        on_query(f'GET /v2.0/{AVAILABILITIES}', time.monotonic() - started_s, len(found))
        return found

    def close(self) -> None:
        """Close the idle connections."""
        self._session.session.close()

    def _get_list(self, resource: str, query: Query, deadline: Deadline) -> tuple[Any, Token]:
        """The response with status 200 to ``GET /v2.0/<resource>?<query>``, and the token that was used."""
        token = self.auth.token(deadline)
        response = self._get(token, resource, query, deadline)
        if response.status_code == 401:
            token = self.auth.token(deadline, rejected=token)
            response = self._get(token, resource, query, deadline)
        status = response.status_code
        if status == 401:
            reason = 'Neutron rejects a new token too (401): does it use the same Keystone?'
            self.auth.invalidate(token, reason)
            raise InstanceLookupError(reason)
        if status >= 500 or status in RETRYABLE_STATUSES:
            raise LookupUnavailable(f'Neutron at {token.endpoint} answered {status}')
        if status != 200:
            raise InstanceLookupError(f'Neutron at {token.endpoint} answered {status}')
        return response, token

    def _get(self, token: Token, resource: str, query: Query, deadline: Deadline) -> Any:
        if not self._circuit.allows_attempt(has_time=deadline.remaining_s() >= limits.CIRCUIT_MIN_TIME_S):
            raise LookupUnavailable(self._circuit.last_error)
        url = f'{_with_version(token.endpoint)}/{resource}?{urlencode(query)}'
        headers = {**HEADERS, **token.headers}
        if id_ := request_id.CURRENT.get():
            headers[request_id.RESPONSE_HEADER] = id_
        if not self._slots.acquire(timeout=deadline.remaining_s()):
            raise LookupUnavailable('the deadline passed while earlier queries waited for Neutron')
        started_s, outcome = time.monotonic(), 'error'
        had_time = deadline.remaining_s() >= limits.CIRCUIT_MIN_TIME_S
        self._circuit.start_attempt()
        try:
            with deadline_scope(deadline):
                response = self._session.get(
                    url, headers=headers, authenticated=False, raise_exc=False, redirect=False, log=False
                )
            outcome = 'error' if response.status_code >= 500 else 'ok'
        except exceptions.ClientException as error:
            unavailable = LookupUnavailable(f'Neutron at {token.endpoint} gave no response: {describe(error)}')
            if is_without_connection(error):
                self._circuit.record_failure(unavailable, had_time=had_time)
            else:
                self._circuit.record_connected()
            raise unavailable from error
        finally:
            instruments.SERVICE_SECONDS.observe(time.monotonic() - started_s, 'neutron', outcome)
            self._slots.release()
        self._circuit.record_connected()
        return response


def _with_version(endpoint: str) -> str:
    """``endpoint`` with the API version. A URL of the catalogue has no version; ``endpoint_override`` may have one."""
    base = endpoint.rstrip('/')
    return base if base.endswith('/v2.0') else base + '/v2.0'


def _parse_ports(response: Any, token: Token) -> dict[str, Any]:
    try:
        body = response.json()
        if all(_is_port(port) for port in body['ports']) and all(
            _is_link(link) for link in body.get('ports_links', ())
        ):
            return body
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise LookupUnavailable(f'The response of Neutron at {token.endpoint} is not a list of ports (status 200)')


def _is_port(port: Any) -> bool:
    """Whether the fields of ``port`` have the right types, and ``id`` or ``network_id`` is present.

    A query may select only some of the fields.
    """
    texts = all(isinstance(port[field] or '', str) for field in FIELDS if field in port and field != 'fixed_ips')
    addresses = all(isinstance(fixed['ip_address'], str) for fixed in port.get('fixed_ips') or ())
    return texts and addresses and bool(port.get('network_id') or port.get('id'))


def _is_link(link: Any) -> bool:
    return isinstance(link.get('rel', ''), str) and isinstance(urlsplit(link.get('href', '')).query, str)


def _next_page_query(body: dict[str, Any]) -> Query:
    """The query for the next page; () after the last page. The host in the link is ignored."""
    for link in body.get('ports_links', ()):
        if link.get('rel') == 'next':
            return tuple(parse_qsl(urlsplit(link.get('href', '')).query))
    return ()
