# SPDX-License-Identifier: Apache-2.0
"""The WSGI app of the namespace proxy: add the client's address and namespace, and send the request to the agent.

*Sets* (never appends to) ``X-Forwarded-For``, from the peer of the connection, and the id of the router or network,
from the command line or, where one process serves many namespaces, from the listening socket. Deletes every header
that a client may not set, in every spelling (LP#1865036), and hop-by-hop headers. If the client sent a
``X-Forwarded-For`` or ``Forwarded`` of its own, the agent gets only the fact, in ``X-Metadata-Guest-Forwarded``.
Path, query and body are not read. The id of the request (``pipeline/request_id.py``) is taken from the client or made,
sent to the agent, and added to a response that has none.

A GET or HEAD is retried while the agent is unavailable (restart, upgrade, reload), until the deadline; then the client
gets 503 with ``Retry-After: 1``. This program has no secret, does not know Nova or OpenStack, and reads no file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from metadata_wsgi import instruments, limits
from metadata_wsgi.deadline import Deadline, sleep
from metadata_wsgi.errors import BadRequest, NoResponse, NotSent, RequestTimeout
from metadata_wsgi.http import error_responses, header_names, message
from metadata_wsgi.http.client import HttpClient
from metadata_wsgi.http.retry import retry_until
from metadata_wsgi.net import addresses
from metadata_wsgi.pipeline import request_id
from metadata_wsgi.pipeline.environ_keys import DEADLINE, FAILURE, NAMESPACE, RECEIVED_AT_S, Failure, Namespace
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

_FORWARDED_KEYS = tuple(header_names.environ_key(name) for name in header_names.FORWARDED_HEADERS)


class NamespaceProxyApp:
    """The app of the namespace with the given id or, without an id, of the namespace of each connection.

    ``agent`` is the client of the agent's socket. ``prefix`` is the header prefix that the agent trusts, for example
    ``X-Quantum``.
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
        self._no_response_log = Throttle(limits.LOG_INTERVAL_S)
        self._slow_client_log = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Relay the agent's response; 503 if there is none, 400, 408 or 413 for a request that cannot be sent."""
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
        except message.TooLarge:
            status, answer = 413, error_responses.payload_too_large(self._max_body_bytes)
        except RequestTimeout:
            if self._slow_client_log.allow():
                LOG.info('A request gets 408: its client did not send the body in time')
            environ[FAILURE] = Failure(408, 'the body did not arrive in time', self._namespace)
            status, answer = 408, error_responses.request_timeout()
        except BadRequest as error:
            status, answer = 400, error_responses.bad_request(str(error))
        except NoResponse as error:
            if self._no_response_log.allow():
                LOG.error('Requests get 503: no response from the metadata agent: %s', error)
            environ[FAILURE] = Failure(503, f'no response from the metadata agent: {error}', self._namespace)
            status, answer = 503, error_responses.unavailable()
        instruments.PROXIED_REQUESTS.add(status)
        return answer(environ, start_response)

    def _id_header(self, environ: WSGIEnvironment) -> tuple[str, str]:
        namespace: Namespace | None = self._namespace or environ.get(NAMESPACE)
        if namespace is None:
            raise BadRequest('This connection came from no namespace.')
        # If both ids are given the router's is used, as in Grizzly.
        if namespace.router_id:
            return header_names.router_id(self._prefix), namespace.router_id
        return header_names.network_id(self._prefix), namespace.network_id or ''

    def _request(self, environ: WSGIEnvironment, id_: str, deadline: Deadline) -> message.Request:
        headers = [(name, value) for name, value in message.headers(environ) if not header_names.is_reserved(name)]
        if any(key in environ for key in _FORWARDED_KEYS):
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
