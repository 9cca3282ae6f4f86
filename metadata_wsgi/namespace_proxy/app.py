# SPDX-License-Identifier: Apache-2.0
"""Say which neighbour is asking, and pass the request to the agent.

*Sets* (never appends) ``X-Forwarded-For`` from the connection's peer and the router or network id from
its own command line; deletes every header a guest may not say, in every spelling (LP#1865036), and
those that belong to the connection. The path, the query and the body are not looked at.

Holds a read while the agent is away (restarted, upgraded, reloaded): asked again until the deadline,
then 503 with ``Retry-After: 1``. It knows no secret, no Nova, no OpenStack and reads no file.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from metadata_wsgi import answers, relay, wire
from metadata_wsgi.context import Deadline
from metadata_wsgi.errors import ExchangeError, NotSent, RefusedError
from metadata_wsgi.patience import insist
from metadata_wsgi.seldom import Seldom

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

MARGIN_S = 0.3
"""The agent is told of this much less time than there is, so that its own answer arrives in time."""


class Hop(Protocol):
    """The way to the agent; :func:`metadata_wsgi.hop.unix_hop` makes the real one."""

    def exchange(self, request: relay.Request, deadline: Deadline) -> relay.Answer:
        """Send it once. Raises NotSent or MaybeSent."""


class NamespaceProxyApp:
    """Proxy of one namespace. ``prefix`` is the trusted one of the agent, e.g. ``X-Quantum``."""

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
        # A router wins over a network, as in Grizzly.
        name, value = (
            (wire.router_id(prefix.lower()), router_id) if router_id else (wire.network_id(prefix.lower()), network_id)
        )
        if not value:
            raise ValueError('neither router_id nor network_id')
        self._hop = hop
        self._namespace_header = (name, value)
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

    def _request(self, environ: WSGIEnvironment) -> relay.Request:
        said = [(name, value) for name, value in relay.headers(environ) if not wire.is_reserved(name)]
        said += [(wire.FORWARDED_FOR, _address(environ['REMOTE_ADDR'])), self._namespace_header]
        content = relay.body(environ, self._max_body_bytes)
        return relay.Request(environ['REQUEST_METHOD'], relay.target(environ), said, content)


def _with_time_left(request: relay.Request, deadline: Deadline) -> relay.Request:
    left_ms = max(0, int((deadline.remaining_s() - MARGIN_S) * 1000))
    timed = [*request.headers, (wire.REMAINING_MS, str(left_ms))]
    return relay.Request(request.method, request.target, timed, request.body)


def _address(peer: str) -> str:
    """The peer's address as the agent wants it: a dual-stack socket shows IPv4 as ``::ffff:10.1.1.2``."""
    parsed = ipaddress.ip_address(peer.partition('%')[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
