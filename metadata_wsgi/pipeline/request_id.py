# SPDX-License-Identifier: Apache-2.0
"""One id for each request, from the client to Nova and back, and in every log line.

The id has the form of OpenStack: ``req-`` and a UUID. If the client sends an ``X-Openstack-Request-Id`` of exactly this
form, the namespace proxy (in mode ``one_hop`` the agent) uses it, else makes a new id. So an instance can choose at
most 32 hexadecimal digits of a log line. An instance can repeat an id, but does not learn the ids of other instances.
The id does not show which instance sent the request. So log lines also have the address and router.

The agent uses the id that the namespace proxy sends, and sends it to Nova and Neutron. Nova and Neutron log the id as
``global_request_id`` if their paste files have oslo.middleware's filter ``request_id``.

If a response already has an ``X-Openstack-Request-Id``, its value is not changed. If Nova's pipeline has the filter
``request_id``, the client gets Nova's own id, and a line of Nova's log has both ids.

The server itself makes the id of a request that reaches no application, such as a malformed one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from metadata_wsgi.http import header_names

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

CURRENT: ContextVar[str] = ContextVar('metadata_wsgi.pipeline.request_id', default='')
"""The id of the request that this greenlet (or thread) handles, '' if none. For log lines. Filters use REQUEST_ID."""

HEADER_KEY = header_names.environ_key(header_names.REQUEST_ID)
RESPONSE_HEADER = 'X-Openstack-Request-Id'

# As in oslo_middleware.request_id, but without a line break at the end.
_FORMAT = re.compile(r'req-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')


def make() -> str:
    """A new id. It is not a secret, so the generator need not be secure: uuid4() would take three times as long."""
    digits = f'{random.getrandbits(128):032x}'
    return f'req-{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}'


def begin(environ: WSGIEnvironment) -> str:
    """The id of this request, from its header or new. From now on the log lines of this greenlet contain it."""
    given = environ.get(HEADER_KEY)
    id_ = given if given is not None and _FORMAT.fullmatch(given) else make()
    CURRENT.set(id_)
    return id_


def added_to(start_response: StartResponse, id_: str) -> StartResponse:
    """A ``start_response`` that adds the id to a response without an ``X-Openstack-Request-Id``."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: object = None, /) -> Callable[[bytes], object]:
        for name, _ in headers:
            if len(name) == len(RESPONSE_HEADER) and name.lower() == header_names.REQUEST_ID:
                break
        else:
            headers = [*headers, (RESPONSE_HEADER, id_)]
        if exc_info is None:
            return start_response(status, headers)
        return start_response(status, headers, exc_info)  # type: ignore[arg-type]

    return start
