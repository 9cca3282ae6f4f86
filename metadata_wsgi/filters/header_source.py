# SPDX-License-Identifier: Apache-2.0
"""Reads address and router or network of the client from the namespace proxy's headers. Must be before instance.

The filter reads the client's address from ``X-Forwarded-For``. The id is in ``PREFIX-Router-ID`` or
``PREFIX-Network-ID``, of which a request must have exactly one. PREFIX is the option ``metadata_header_prefix``:
``X-Quantum`` for our and Grizzly's namespace proxy, ``X-Neutron`` for Neutron's haproxy, ``X-OVN`` for OVN's haproxy.
Then the filter deletes these headers, and every other header that could name a client or an instance. So no later
filter can read such a header from a client.

An IPv6 link-local address is unique on its link only. Our namespace proxy sends the interface on which the request
arrived (``X-Metadata-Interface``). With this header the lookup searches only the network of the interface. Without it
(Neutron's haproxy does not send it) the lookup searches all networks of the router, as Neutron's agent does. Behind
haproxy a client can send the header itself, but the header can only restrict the search.

Only a namespace proxy may connect to the agent's socket. The proxy sets these headers and deletes the client's, so a
client cannot forge them. A request gets 400 if it has two ids, an id with another prefix (LP#1865036), or one of these
headers twice.

The filter writes SOURCE and CLIENT_IS_PROXY. CLIENT_IS_PROXY is True if the client sent a forwarding header, as a proxy
does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import BadRequest
from metadata_wsgi.http import error_responses, header_names
from metadata_wsgi.net.addresses import is_link_local, normalize_ip
from metadata_wsgi.pipeline import environ_keys

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
        help='Prefix of the headers with the router or network id. A request with an id under another prefix gets 400.',
    ),
]

# An id becomes part of a query to Quantum, so only letters, digits and dashes are accepted.
_ID = re.compile(r'[0-9A-Za-z-]{1,64}\Z')
_INTERFACE = re.compile(r'[0-9A-Za-z._-]{1,15}\Z')


class HeaderSourceFilter:
    """Sets SOURCE from the headers of a trusted namespace proxy."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES = frozenset({environ_keys.SOURCE, environ_keys.CLIENT_IS_PROXY})

    def __init__(self, app: WSGIApplication, *, prefix: str) -> None:
        self.app = app
        self._router_key = header_names.environ_key(header_names.router_id(prefix.lower()))
        self._network_key = header_names.environ_key(header_names.network_id(prefix.lower()))
        self._untrusted_keys = frozenset(
            header_names.environ_key(header(other))
            for other in header_names.PREFIXES
            if other != prefix.lower()
            for header in (header_names.router_id, header_names.network_id)
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set SOURCE and call the next filter. Responds 400 if the headers do not identify exactly one client."""
        try:
            source = self._source(environ)
        except BadRequest as error:
            environ[environ_keys.FAILURE] = environ_keys.Failure(400, f'not from a namespace proxy: {error}')
            return error_responses.bad_request(str(error))(environ, start_response)
        environ[environ_keys.CLIENT_IS_PROXY] = not environ.keys().isdisjoint(_FORWARDED_KEYS)
        for key in [key for key in environ if header_names.is_reserved_key(key)]:
            del environ[key]
        environ[environ_keys.SOURCE] = source
        return self.app(environ, start_response)

    def _source(self, environ: WSGIEnvironment) -> environ_keys.Source:
        if not environ.keys().isdisjoint(self._untrusted_keys):
            raise BadRequest('An id under a header prefix that is not trusted.')
        router_id = environ.get(self._router_key)
        network_id = environ.get(self._network_key)
        if router_id is not None and network_id is not None:
            raise BadRequest('Both a router id and a network id.')
        if router_id is None and network_id is None:
            raise BadRequest('Neither a router id nor a network id.')
        if not _ID.match(router_id or network_id or ''):
            raise BadRequest('An invalid id.')
        address = parse_address(environ.get('HTTP_X_FORWARDED_FOR'))
        interface = environ.get(_INTERFACE_KEY) if is_link_local(address) else None
        if interface is not None and not _INTERFACE.match(interface):
            raise BadRequest('An invalid interface.')
        return environ_keys.Source(address, router_id, network_id, interface)


def parse_address(text: str | None) -> str:
    """The canonical form of the address ``text``: without a zone. A v4-mapped address (haproxy) becomes IPv4.

    Neutron compares IPv6 addresses as strings, so a query must contain the canonical form. Raises BadRequest if
    ``text`` is not a valid address.
    """
    if text is None:
        raise BadRequest('No client address.')
    try:
        return normalize_ip(text.strip())
    except ValueError:
        raise BadRequest('An invalid client address.') from None


# Our namespace proxy sends the first header instead of the client's forwarding headers. haproxy forwards "Forwarded".
_FORWARDED_KEYS = frozenset(map(header_names.environ_key, (header_names.CLIENT_FORWARDED, 'forwarded')))
_INTERFACE_KEY = header_names.environ_key(header_names.CLIENT_INTERFACE)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], HeaderSourceFilter]:
    """For ``use = egg:metadata_wsgi#header_source``."""
    conf = config_files.load(global_conf, OPTS)
    return lambda app: HeaderSourceFilter(app, prefix=conf.metadata_header_prefix)
