# SPDX-License-Identifier: Apache-2.0
"""Read the network position of the client from its connection: one hop, without a namespace proxy.

A listening socket stays in the namespace where the keeper opened it, so the worker knows by the socket in which
router's or network's namespace a client connected; the address is that of the connection, for an IPv6 link-local one
with the interface on which it arrived. Every header that could
name a client or an instance is deleted, in every spelling.

The price: the process that reads the bytes of clients then also has Nova's secret and the credentials for Quantum; in
two hops it has neither. Privileges stay separate all the same: the worker is an unprivileged user that can enter no
namespace, and the keeper reads no byte of a client.

Replaces ``header_source`` in a pipeline for sockets of the keeper; a request on another socket gets 400. Establishes
SOURCE, and CLIENT_IS_PROXY: whether the client sent a forwarding header, as a proxy does. No options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi.http import error_responses, header_names
from metadata_wsgi.net.addresses import interface_of, is_link_local, normalize_ip
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FORWARDING_KEYS = tuple(header_names.environ_key(name) for name in header_names.FORWARDED_HEADERS)


class SocketSourceFilter:
    """Sets SOURCE from NAMESPACE and the peer address of the connection."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES = frozenset({environ_keys.SOURCE, environ_keys.CLIENT_IS_PROXY})

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set the source and call the app; 400 on a socket that is not the keeper's, or whose interface is unknown."""
        namespace: environ_keys.Namespace | None = environ.get(environ_keys.NAMESPACE)
        if namespace is None:
            return error_responses.bad_request('This did not come from a namespace.')(environ, start_response)
        address = normalize_ip(environ['REMOTE_ADDR'])
        interface = interface_of(environ['REMOTE_ADDR']) if is_link_local(address) else None
        if is_link_local(address) and interface is None:
            reason = 'The interface of this connection is unknown.'
            environ[environ_keys.FAILURE] = environ_keys.Failure(400, reason)
            return error_responses.bad_request(reason)(environ, start_response)
        environ[environ_keys.CLIENT_IS_PROXY] = any(key in environ for key in _FORWARDING_KEYS)
        for key in [key for key in environ if header_names.is_reserved_key(key)]:
            del environ[key]
        environ[environ_keys.SOURCE] = environ_keys.Source(
            address, namespace.router_id, namespace.network_id, interface
        )
        return self.app(environ, start_response)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SocketSourceFilter]:
    """For ``use = egg:metadata_wsgi#socket_source``."""
    return SocketSourceFilter
