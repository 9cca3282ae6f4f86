# SPDX-License-Identifier: Apache-2.0
"""One id for each request, from the client to Nova and back, and in every log line.

The id has the form of OpenStack: ``req-`` and a UUID. The namespace proxy (in mode ``one_hop`` the agent) takes the id
in the client's ``X-Openstack-Request-Id`` if it has exactly this form, else it makes one. So an instance chooses at
most 32 hexadecimal digits of a log line; it can repeat an id, and does not learn those of other instances. The
request id never identifies an instance: log lines name address and router beside it.

The agent takes the id of the namespace proxy in the same way, and sends it to Nova and Neutron, which log it as
``global_request_id`` if their paste files have the filter ``request_id``.

A response that has an ``X-Openstack-Request-Id`` keeps it: Nova's response is relayed unchanged, and oslo.middleware
does the same. Where Nova's pipeline has that filter, a client gets Nova's id, and Nova's log has both on one line.
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
"""The id of the request that this greenlet (or thread) handles, '' if none. For log lines; filters have REQUEST_ID."""

HEADER_KEY = header_names.environ_key(header_names.REQUEST_ID)
RESPONSE_HEADER = 'X-Openstack-Request-Id'

# As in oslo_middleware.request_id, but without a line break at the end.
_FORMAT = re.compile(r'req-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')


def make() -> str:
    """A new id. It is not a secret, so a quick generator makes it: uuid4() would take three times as long."""
    digits = f'{random.getrandbits(128):032x}'
    return f'req-{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}'


def begin(environ: WSGIEnvironment) -> str:
    """The id of this request, taken from its header or made. Log lines of this greenlet have it from now on."""
    given = environ.get(HEADER_KEY)
    id_ = given if given is not None and _FORMAT.fullmatch(given) else make()
    CURRENT.set(id_)
    return id_


def added_to(start_response: StartResponse, id_: str) -> StartResponse:
    """A ``start_response`` that adds the id to a response that has none."""

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
