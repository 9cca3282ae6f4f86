# SPDX-License-Identifier: Apache-2.0
"""Reads address and router or network of the client from its connection: for mode one_hop, without a namespace proxy.

A listening socket stays in the namespace in which the keeper opened it. So each listening socket belongs to one router
or network. The client's address is the peer address of the connection. For an IPv6 link-local address, SOURCE also has
the interface on which the connection arrived. The filter deletes every header that could name a client or an instance,
in every spelling.

In mode one_hop the process that parses clients' requests also has the secret for Nova and the credentials for Neutron.
In the other modes the namespace proxy parses the requests, and it has no secrets. In all modes a worker runs as an
unprivileged user that cannot enter a namespace. The keeper reads no data of a client.

The filter replaces ``header_source`` in a pipeline for sockets of the keeper. A request on another socket gets 400. The
filter writes SOURCE and CLIENT_IS_PROXY. CLIENT_IS_PROXY is True if the client sent a forwarding header, as a proxy
does. The filter has no options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi.http import error_responses, header_names
from metadata_wsgi.net.addresses import interface_of, is_link_local, normalize_ip
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FORWARDING_KEYS = frozenset(header_names.environ_key(name) for name in header_names.FORWARDED_HEADERS)


class SocketSourceFilter:
    """Sets SOURCE from NAMESPACE and the peer address of the connection."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES = frozenset({environ_keys.SOURCE, environ_keys.CLIENT_IS_PROXY})

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set SOURCE and call the next filter.

        Responds 400 if the socket is not from the keeper, or if a link-local address has no interface.
        """
        namespace: environ_keys.Namespace | None = environ.get(environ_keys.NAMESPACE)
        if namespace is None:
            return error_responses.bad_request('The request did not arrive in a namespace.')(environ, start_response)
        address = normalize_ip(environ['REMOTE_ADDR'])
        is_local = is_link_local(address)
        interface = interface_of(environ['REMOTE_ADDR']) if is_local else None
        if is_local and interface is None:
            reason = 'The interface of this connection is unknown.'
            environ[environ_keys.FAILURE] = environ_keys.Failure(400, reason)
            return error_responses.bad_request(reason)(environ, start_response)
        environ[environ_keys.CLIENT_IS_PROXY] = not environ.keys().isdisjoint(_FORWARDING_KEYS)
        for key in [key for key in environ if header_names.is_reserved_key(key)]:
            del environ[key]
        environ[environ_keys.SOURCE] = environ_keys.Source(
            address, namespace.router_id, namespace.network_id, interface
        )
        return self.app(environ, start_response)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SocketSourceFilter]:
    """For ``use = egg:metadata_wsgi#socket_source``."""
    return SocketSourceFilter
