# SPDX-License-Identifier: Apache-2.0
"""Say who is asking, by network position, from the namespace proxy's headers. Stands before instance.

Reads ``X-Forwarded-For`` (the guest's address) and, under the one prefix that is trusted,
``-Router-ID`` or ``-Network-ID`` (exactly one of the two). Then it deletes them and every header
that could name somebody, so that nothing behind it can take a guest's word for a fact.

What could a guest fake? Nothing, as long as only a namespace proxy can open the socket: the proxy sets
these headers and deletes a guest's own. What arrives twice arrives joined by a comma, and is refused;
so is an id under a prefix that is not the trusted one (LP#1865036), and both ids at once.

``metadata_header_prefix`` is ``X-Quantum`` for our namespace proxy and Grizzly's, ``X-Neutron`` for
Neutron's haproxy. Establishes SOURCE, and FORWARDED: whether the guest said for whom it asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi import answers, config, context, wire
from metadata_wsgi.addresses import canonical
from metadata_wsgi.errors import RefusedError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = [
    cfg.StrOpt(
        'metadata_header_prefix',
        default='X-Quantum',
        choices=[
            ('X-Quantum', 'our namespace proxy, and Grizzly'),
            ('X-Neutron', "Neutron's haproxy"),
            ('X-OVN', "OVN's haproxy"),
        ],
        ignore_case=True,
        help='Prefix of the headers that carry the router or network id; ids under another prefix are refused.',
    ),
]

# An id goes into a query to Quantum: nothing but what an id has may pass.
_ID = re.compile(r'[0-9A-Za-z-]{1,64}\Z')


class SourceFilter:
    """Establishes SOURCE from the headers of a trusted namespace proxy."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES = frozenset({context.SOURCE, context.FORWARDED})

    def __init__(self, app: WSGIApplication, *, prefix: str) -> None:
        self.app = app
        self._router_key = _environ_key(wire.router_id(prefix.lower()))
        self._network_key = _environ_key(wire.network_id(prefix.lower()))
        self._other_ids = tuple(
            _environ_key(header(other))
            for other in wire.PREFIXES
            if other != prefix.lower()
            for header in (wire.router_id, wire.network_id)
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Write the source down and go on; 400 where there is none, or more than one."""
        try:
            source = self._source(environ)
        except RefusedError as error:
            return answers.refused(str(error))(environ, start_response)
        environ[context.FORWARDED] = _FORWARDED_KEY in environ
        for key in [key for key in environ if wire.is_reserved_key(key)]:
            del environ[key]
        environ[context.SOURCE] = source
        return self.app(environ, start_response)

    def _source(self, environ: WSGIEnvironment) -> context.Source:
        if any(key in environ for key in self._other_ids):
            raise RefusedError('An id under a prefix that is not the trusted one.')
        router_id = environ.get(self._router_key)
        network_id = environ.get(self._network_key)
        if router_id is not None and network_id is not None:
            raise RefusedError('Both a router id and a network id.')
        if router_id is None and network_id is None:
            raise RefusedError('Neither a router id nor a network id.')
        if not _ID.match(router_id or network_id or ''):
            raise RefusedError('An id that is none.')
        return context.Source(address(environ.get('HTTP_X_FORWARDED_FOR')), router_id, network_id)


def address(text: str | None) -> str:
    """Canonical text of the one address in ``text``: no zone, and IPv4 for a v4-mapped one (haproxy's).

    Quantum matches IPv6 addresses as strings, so only the canonical form is found there.
    """
    if text is None:
        raise RefusedError('No address of who is asking.')
    try:
        return canonical(text.strip())
    except ValueError:
        raise RefusedError('The address of who is asking is none.') from None


def _environ_key(header: str) -> str:
    return 'HTTP_' + header.upper().replace('-', '_')


_FORWARDED_KEY = _environ_key(wire.GUEST_FORWARDED)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SourceFilter]:
    """For ``use = egg:metadata_wsgi#source``."""
    conf = config.load(global_conf, OPTS)
    return lambda app: SourceFilter(app, prefix=conf.metadata_header_prefix)
