# SPDX-License-Identifier: Apache-2.0
"""Say which neighbour is asking, and pass the request to the agent.

*Sets* (never appends) ``X-Forwarded-For`` from the connection's peer, and the router or network id from its
own command line or, shared by many namespaces, from the socket the connection came in on; deletes every
header a guest may not say, in every spelling (LP#1865036), and those that belong to the connection. That a
guest said for whom it asks is told the agent in one bit, ``X-Metadata-Guest-Forwarded``, never in its words.
The path, the query and the body are not looked at.

Holds a read while the agent is away (restarted, upgraded, reloaded): asked again until the deadline,
then 503 with ``Retry-After: 1``. It knows no secret, no Nova, no OpenStack and reads no file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, NoResponse, NotSent
from metadata_wsgi.http import error_responses, header_names, message
from metadata_wsgi.http.retry import retry_until
from metadata_wsgi.net.addresses import normalize_ip
from metadata_wsgi.pipeline.environ_keys import NAMESPACE, RECEIVED_AT_S, Namespace
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)


_FORWARDING = tuple('HTTP_' + name.upper().replace('-', '_') for name in header_names.FORWARDING)


class HttpClient(Protocol):
    """The way to the agent; :func:`metadata_wsgi.http.client.unix_client` makes the real one."""

    def send_request(self, request: message.Request, deadline: Deadline) -> message.Response:
        """Send it once. Raises NotSent or MaybeSent."""


class NamespaceProxyApp:
    """Proxy of the namespace with that id or, without one, of the namespace each connection came in.

    ``prefix`` is the one that the agent trusts, e.g. ``X-Quantum``.
    """

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        hop: HttpClient,
        *,
        router_id: str | None = None,
        network_id: str | None = None,
        prefix: str = 'X-Quantum',
        answer_within_s: float = limits.REQUEST_TIMEOUT_S,
        max_body_bytes: int = limits.MAX_REQUEST_BODY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hop = hop
        self._namespace = Namespace(router_id, network_id) if router_id or network_id else None
        self._prefix = prefix.lower()
        self._answer_within_s = answer_within_s
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._sleep = sleep
        self._seldom = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on and relay the agent's answer."""
        received_at_s = environ.get(RECEIVED_AT_S, self._clock())
        deadline = Deadline(received_at_s + self._answer_within_s, self._clock)
        try:
            request = self._request(environ)
            answer = retry_until(
                lambda: self._hop.send_request(_with_time_left(request, deadline), deadline),
                deadline,
                retry_on=(NoResponse,) if request.is_retryable else (NotSent,),
                sleep=self._sleep,
            )
        except message.TooLarge:
            return error_responses.payload_too_large(self._max_body_bytes)(environ, start_response)
        except BadRequest as error:
            return error_responses.bad_request(str(error))(environ, start_response)
        except NoResponse as error:
            if self._seldom.allow():
                LOG.error('Guests are answered 503: no answer from the metadata agent: %s', error)
            return error_responses.unavailable()(environ, start_response)
        return answer(environ, start_response)

    def _id_header(self, environ: WSGIEnvironment) -> tuple[str, str]:
        namespace: Namespace | None = self._namespace or environ.get(NAMESPACE)
        if namespace is None:
            raise BadRequest('This did not come from a namespace.')
        # A router wins over a network, as in Grizzly.
        if namespace.router_id:
            return header_names.router_id(self._prefix), namespace.router_id
        return header_names.network_id(self._prefix), namespace.network_id or ''

    def _request(self, environ: WSGIEnvironment) -> message.Request:
        said = [(name, value) for name, value in message.headers(environ) if not header_names.is_reserved(name)]
        if any(key in environ for key in _FORWARDING):
            said.append((header_names.CLIENT_FORWARDED, '1'))
        said += [(header_names.FORWARDED_FOR, normalize_ip(environ['REMOTE_ADDR'])), self._id_header(environ)]
        content = message.body(environ, self._max_body_bytes)
        return message.Request(environ['REQUEST_METHOD'], message.target(environ), said, content)


def _with_time_left(request: message.Request, deadline: Deadline) -> message.Request:
    left_ms = max(0, int((deadline.remaining_s() - limits.AGENT_HEADROOM_S) * 1000))
    timed = [*request.headers, (header_names.REMAINING_MS, str(left_ms))]
    return message.Request(request.method, request.target, timed, request.body)
