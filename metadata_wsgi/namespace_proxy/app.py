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

from metadata_wsgi import answers, relay, wire
from metadata_wsgi.addresses import canonical
from metadata_wsgi.context import NAMESPACE, Deadline, Namespace
from metadata_wsgi.errors import ExchangeError, NotSent, RefusedError
from metadata_wsgi.patience import insist
from metadata_wsgi.seldom import Seldom

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

MARGIN_S = 0.3
"""The agent is told of this much less time than there is, so that its own answer arrives in time."""

_FORWARDING = tuple('HTTP_' + name.upper().replace('-', '_') for name in wire.FORWARDING)


class Hop(Protocol):
    """The way to the agent; :func:`metadata_wsgi.hop.unix_hop` makes the real one."""

    def exchange(self, request: relay.Request, deadline: Deadline) -> relay.Answer:
        """Send it once. Raises NotSent or MaybeSent."""


class NamespaceProxyApp:
    """Proxy of the namespace with that id or, without one, of the namespace each connection came in.

    ``prefix`` is the one that the agent trusts, e.g. ``X-Quantum``.
    """

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self,
        hop: Hop,
        *,
        router_id: str | None = None,
        network_id: str | None = None,
        prefix: str = 'X-Quantum',
        answer_within_s: float = 9.0,
        max_body_bytes: int = 1 << 20,
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
        self._seldom = Seldom(60)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on and relay the agent's answer."""
        deadline = Deadline.after(self._answer_within_s, self._clock)
        try:
            request = self._request(environ)
            answer = insist(
                lambda: self._hop.exchange(_with_time_left(request, deadline), deadline),
                deadline,
                again_after=(ExchangeError,) if request.is_read else (NotSent,),
                sleep=self._sleep,
            )
        except relay.TooLarge:
            return answers.too_large(self._max_body_bytes)(environ, start_response)
        except RefusedError as error:
            return answers.refused(str(error))(environ, start_response)
        except ExchangeError as error:
            if self._seldom.due():
                LOG.error('Guests are answered 503: no answer from the metadata agent: %s', error)
            return answers.unavailable()(environ, start_response)
        return answer(environ, start_response)

    def _id_header(self, environ: WSGIEnvironment) -> tuple[str, str]:
        namespace: Namespace | None = self._namespace or environ.get(NAMESPACE)
        if namespace is None:
            raise RefusedError('This did not come from a namespace.')
        # A router wins over a network, as in Grizzly.
        if namespace.router_id:
            return wire.router_id(self._prefix), namespace.router_id
        return wire.network_id(self._prefix), namespace.network_id or ''

    def _request(self, environ: WSGIEnvironment) -> relay.Request:
        said = [(name, value) for name, value in relay.headers(environ) if not wire.is_reserved(name)]
        if any(key in environ for key in _FORWARDING):
            said.append((wire.GUEST_FORWARDED, '1'))
        said += [(wire.FORWARDED_FOR, canonical(environ['REMOTE_ADDR'])), self._id_header(environ)]
        content = relay.body(environ, self._max_body_bytes)
        return relay.Request(environ['REQUEST_METHOD'], relay.target(environ), said, content)


def _with_time_left(request: relay.Request, deadline: Deadline) -> relay.Request:
    left_ms = max(0, int((deadline.remaining_s() - MARGIN_S) * 1000))
    timed = [*request.headers, (wire.REMAINING_MS, str(left_ms))]
    return relay.Request(request.method, request.target, timed, request.body)
