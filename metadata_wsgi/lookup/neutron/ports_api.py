# SPDX-License-Identifier: Apache-2.0
"""Ask Quantum for ports: ``GET <endpoint>/v2.0/ports?...``, and tell what is wrong now from what stays wrong.

Away (asked again by the caller): no connection, no answer in time, 408, 429, 5xx, an answer that is no
list of ports. Wrong: 401 with a new token too, 403, 404, a redirect (followed, it would carry the token
to wherever it points). No text has a token or the body of an answer in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from keystoneauth1 import exceptions

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron.auth import Access, Grant
from metadata_wsgi.lookup.neutron.queries import FIELDS, Port, Query
from metadata_wsgi.lookup.neutron.transport import within

PAGES = 100
"""A server that limits its pages gives at most this many for one question."""
AGAIN = frozenset({408, 425, 429})
HEADERS = {'Accept': 'application/json', 'Accept-Encoding': 'identity'}

OnQuery = Callable[[str, float, int], object]
"""Told of each query: what was asked, seconds, how many ports came."""


class PortsApi:
    """Asks for ports with at most ``connections`` questions at once. Shared by all threads of a worker."""

    def __init__(self, session: Any, access: Access, *, connections: int) -> None:
        self._session = session
        self._free = threading.BoundedSemaphore(connections)
        self.access = access

    def ports(self, query: Query, deadline: Deadline, on_query: OnQuery, pages: int = PAGES) -> list[Port]:
        """All ports that ``query`` selects, or those of the first ``pages`` pages if that is not PAGES.

        Raises LookupUnavailable or InstanceLookupError, before ``deadline``.
        """
        found: list[Port] = []
        for _ in range(pages):
            since_s = time.monotonic()
            body = self._page(query, deadline)
            found += body['ports']
            on_query(f'GET /v2.0/ports?{urlencode(query)}', time.monotonic() - since_s, len(body['ports']))
            following = _next(body)
            if not following:
                return found
            query = following
        if pages == PAGES:
            raise InstanceLookupError(
                f'Quantum answered one question with more than {PAGES} pages; raise its page size'
            )
        return found

    def close(self) -> None:
        """Close the kept connections."""
        self._session.session.close()

    def _page(self, query: Query, deadline: Deadline) -> dict[str, Any]:
        grant = self.access.grant(deadline)
        response = self._get(grant, query, deadline)
        if response.status_code == 401:
            grant = self.access.grant(deadline, refused=grant)
            response = self._get(grant, query, deadline)
        status = response.status_code
        if status == 401:
            why = 'Quantum refuses a new token too (401): does it ask the same Keystone?'
            self.access.distrust(grant, why)
            raise InstanceLookupError(why)
        if status >= 500 or status in AGAIN:
            raise LookupUnavailable(f'Quantum at {grant.endpoint} answered {status}')
        if status != 200:
            raise InstanceLookupError(f'Quantum at {grant.endpoint} answered {status}')
        return _checked(response, grant)

    def _get(self, grant: Grant, query: Query, deadline: Deadline) -> Any:
        url = f'{_versioned(grant.endpoint)}/ports?{urlencode(query)}'
        if not self._free.acquire(timeout=deadline.remaining_s()):
            raise LookupUnavailable('the time was over before Quantum had answered other questions')
        try:
            with within(deadline):
                return self._session.get(
                    url, headers={**HEADERS, **grant.headers}, authenticated=False, raise_exc=False, redirect=False,
                    log=False,
                )  # fmt: skip
        except exceptions.ClientException as error:
            reason = type(error).__name__
            raise LookupUnavailable(f'Quantum at {grant.endpoint} gave no answer ({reason})') from error
        finally:
            self._free.release()


def _versioned(endpoint: str) -> str:
    """The catalogue's URLs have no version; those that operators write may have one."""
    bare = endpoint.rstrip('/')
    return bare if bare.endswith('/v2.0') else bare + '/v2.0'


def _checked(response: Any, grant: Grant) -> dict[str, Any]:
    try:
        body = response.json()
        if all(_is_port(port) for port in body['ports']) and all(
            _is_link(link) for link in body.get('ports_links', ())
        ):
            return body
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise LookupUnavailable(f'Quantum at {grant.endpoint} answered 200 with something that is no list of ports')


def _is_port(port: Any) -> bool:
    """Whether what is there of a port is what it should be; a question may have asked for a few of its fields only."""
    texts = all(isinstance(port[field] or '', str) for field in FIELDS if field in port and field != 'fixed_ips')
    addresses = all(isinstance(fixed['ip_address'], str) for fixed in port.get('fixed_ips') or ())
    return texts and addresses and bool(port.get('network_id') or port.get('id'))


def _is_link(link: Any) -> bool:
    return isinstance(link.get('rel', ''), str) and isinstance(urlsplit(link.get('href', '')).query, str)


def _next(body: dict[str, Any]) -> Query:
    """What the next page is asked with. Only the query counts: the host stays ours, whatever the link says."""
    for link in body.get('ports_links', ()):
        if link.get('rel') == 'next':
            return tuple(parse_qsl(urlsplit(link.get('href', '')).query))
    return ()
