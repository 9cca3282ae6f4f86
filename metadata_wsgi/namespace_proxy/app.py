# SPDX-License-Identifier: Apache-2.0
"""The WSGI app of the namespace proxy: adds the client's address and namespace, and sends the request to the agent.

The app *sets* two headers, and never appends to the client's values. ``X-Forwarded-For`` gets the peer address of the
connection. ``X-Quantum-Router-ID`` or ``X-Quantum-Network-ID`` gets the id from the command line. If one process serves
many namespaces, the id of the listening socket is used.

The app deletes every header that a client may not set, in every spelling (LP#1865036), and hop-by-hop headers. If the
client sent ``X-Forwarded-For`` or ``Forwarded``, the agent gets ``X-Metadata-Guest-Forwarded: 1`` instead. Path, query
and body are sent unchanged. The app also sends the id of the request (``pipeline/request_id.py``) to the agent, and
adds the id to a response that has none.

A GET or HEAD is retried while the agent is unavailable (restart, upgrade, reload). At the deadline the client gets 503
with ``Retry-After: 1``. The app has no secret and sends no request to Nova or OpenStack.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline, sleep
from metadata_wsgi.errors import BadRequest, NoResponse, NotSent
from metadata_wsgi.http import header_names, message
from metadata_wsgi.http.client import HttpClient
from metadata_wsgi.http.proxy_errors import ProxyErrors
from metadata_wsgi.http.retry import retry_until
from metadata_wsgi.net import addresses
from metadata_wsgi.pipeline import request_id
from metadata_wsgi.pipeline.environ_keys import DEADLINE, FAILURE, NAMESPACE, RECEIVED_AT_S, Failure, Namespace

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FORWARDED_KEYS = frozenset(header_names.environ_key(name) for name in header_names.FORWARDED_HEADERS)


class NamespaceProxyApp:
    """The app of a namespace proxy. Without ``router_id`` and ``network_id`` it serves many routers and networks.

    Then the listening socket of each connection has the id of its router or network.

    ``agent`` sends requests to the agent's socket. ``prefix`` is the header prefix that the agent trusts, for example
    ``X-Quantum``. ``max_body_bytes`` is the limit of a request body.
    """

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        agent: HttpClient,
        *,
        router_id: str | None = None,
        network_id: str | None = None,
        prefix: str = 'X-Quantum',
        request_timeout_s: float = limits.REQUEST_TIMEOUT_S,
        max_body_bytes: int = limits.MAX_REQUEST_BODY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._agent = agent
        self._namespace = Namespace(router_id, network_id) if router_id or network_id else None
        self._prefix = prefix.lower()
        self._request_timeout_s = request_timeout_s
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._sleep = sleep
        self._errors = ProxyErrors('the metadata agent', max_body_bytes=max_body_bytes)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send the agent's response to the client, 503 if there is none; 400, 408 or 413 if the request is at fault."""
        id_ = request_id.begin(environ)
        start_response = request_id.added_to(start_response, id_)
        received_at_s = environ.get(RECEIVED_AT_S, self._clock())
        deadline = environ[DEADLINE] = Deadline(received_at_s + self._request_timeout_s, self._clock)
        answer: WSGIApplication
        try:
            request = self._request(environ, id_, deadline)
            answer = response = retry_until(
                lambda: self._agent.send_request(_with_remaining_time(request, deadline), deadline),
                deadline,
                service='agent',
                retry_on=(NoResponse,) if request.is_retryable else (NotSent,),
                sleep=self._sleep,
            )
            status = response.status
        except (BadRequest, NoResponse) as error:
            status, reason, answer = self._errors.response(error)
            if reason:
                environ[FAILURE] = Failure(status, reason)
        instruments.PROXIED_REQUESTS.add(status)
        return answer(environ, start_response)

    def _id_header(self, environ: WSGIEnvironment) -> tuple[str, str]:
        namespace: Namespace | None = self._namespace or environ.get(NAMESPACE)
        if namespace is None:
            raise BadRequest('The connection was not made in a namespace.')
        # If both ids are given, the router's id is used, as in Grizzly.
        if namespace.router_id:
            return header_names.router_id(self._prefix), namespace.router_id
        return header_names.network_id(self._prefix), namespace.network_id or ''

    def _request(self, environ: WSGIEnvironment, id_: str, deadline: Deadline) -> message.Request:
        headers = message.headers(environ, header_names.client_name)
        if not environ.keys().isdisjoint(_FORWARDED_KEYS):
            headers.append((header_names.CLIENT_FORWARDED, '1'))
        if interface := addresses.interface_of(environ['REMOTE_ADDR']):
            headers.append((header_names.CLIENT_INTERFACE, interface))
        address = addresses.normalize_ip(environ['REMOTE_ADDR'])
        headers += [(header_names.REQUEST_ID, id_), (header_names.FORWARDED_FOR, address), self._id_header(environ)]
        content = message.body(environ, self._max_body_bytes, deadline)
        return message.Request(environ['REQUEST_METHOD'], message.target(environ), headers, content)


def _with_remaining_time(request: message.Request, deadline: Deadline) -> message.Request:
    remaining_ms = max(0, int((deadline.remaining_s() - limits.AGENT_HEADROOM_S) * 1000))
    headers = [*request.headers, (header_names.REMAINING_MS, str(remaining_ms))]
    return message.Request(request.method, request.target, headers, request.body)
