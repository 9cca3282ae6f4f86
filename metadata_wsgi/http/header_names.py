# SPDX-License-Identifier: Apache-2.0
"""The names of HTTP headers: from client to namespace proxy, from namespace proxy to agent, and from agent to Nova.

No function here reads a request. All names are in lower case, because header names are case-insensitive (RFC 9110,
5.1).
"""

from __future__ import annotations

import functools
from typing import Final

FORWARDED_FOR: Final = 'x-forwarded-for'
INSTANCE_ID: Final = 'x-instance-id'
TENANT_ID: Final = 'x-tenant-id'
SIGNATURE: Final = 'x-instance-id-signature'

REMAINING_MS: Final = 'x-metadata-remaining-ms'
"""Milliseconds for the agent's response: the remaining time of the namespace proxy less ``limits.AGENT_HEADROOM_S``."""

CLIENT_FORWARDED: Final = 'x-metadata-guest-forwarded'
"""The namespace proxy sets this header to ``1`` if the client sent one of ``FORWARDED_HEADERS``, and deletes those."""

CLIENT_INTERFACE: Final = 'x-metadata-interface'
"""Set by the namespace proxy: the interface on which a request from an IPv6 link-local address arrived."""

REQUEST_ID: Final = 'x-openstack-request-id'
"""Id of a request. A client may send one. The agent sends the id to Nova, and in the response."""

TRACEPARENT: Final = 'traceparent'
"""Trace and span of the caller (W3C Trace Context). If a client sends a valid value, the agent sends it to Nova."""

HOP_LIMIT: Final = 'x-metadata-hop-limit'
"""In a response: the IP TTL of its packets. The server sets the TTL of the client's socket and removes the header."""

TOKEN_TTL: Final = 'x-aws-ec2-metadata-token-ttl-seconds'  # noqa: S105 (the name of a header)
"""Lifetime of a session token in seconds, in the request and in the response."""

FORWARDED_HEADERS: Final = frozenset({FORWARDED_FOR, 'forwarded'})
"""Headers in which a proxy sends the address of its client. Other programs do not send them."""

PREFIXES: Final = ('x-quantum', 'x-neutron', 'x-ovn')
"""The prefixes of id headers that metadata agents use. An agent trusts one of them."""


def router_id(prefix: str) -> str:
    """The name of the header with the id of a router, for ``prefix``."""
    return f'{prefix}-router-id'


def network_id(prefix: str) -> str:
    """The name of the header with the id of a network, for ``prefix``."""
    return f'{prefix}-network-id'


# Headers that no client may set. From such a header a program on the path to Nova reads the identity of an instance, or
# the way to find it. For example, x-metadata-provider makes Nova use the authentication for load balancers.
RESERVED_PREFIXES: Final = (
    *(prefix + '-' for prefix in PREFIXES),
    'x-forwarded-',
    'x-instance-',
    'x-tenant-',
    'x-metadata-',
    'x-project-',
)
RESERVED: Final = frozenset(
    {
        'forwarded',
        'x-forwarded',
        'x-real-ip',
        'x-client-ip',
        'x-original-uri',
        'x-original-url',
        'x-rewrite-url',
        'x-http-method-override',
        REQUEST_ID,
    }
)

# The headers of RFC 9110, 7.6.1, and older ones that must not be forwarded either.
HOP_BY_HOP: Final = frozenset(
    {
        'connection',
        'keep-alive',
        'proxy-authenticate',
        'proxy-authorization',
        'proxy-connection',
        'te',
        'trailer',
        'transfer-encoding',
        'upgrade',
        'expect',
    }
)

# The client's headers that are sent to Nova. They describe the wanted response and the request body.
UPSTREAM_ALLOWED: Final = frozenset(
    {
        'accept',
        'accept-charset',
        'accept-encoding',
        'accept-language',
        'content-encoding',
        'content-type',
        'if-match',
        'if-modified-since',
        'if-none-match',
        'if-unmodified-since',
        'range',
        'user-agent',
        'x-aws-ec2-metadata-token',
        TOKEN_TTL,
    }
)


@functools.lru_cache(maxsize=256)
def environ_key(name: str) -> str:
    """The WSGI environ key of header ``name``: ``HTTP_X_INSTANCE_ID`` for ``x-instance-id``."""
    return 'HTTP_' + name.upper().replace('-', '_')


@functools.lru_cache(maxsize=256)
def of_environ_key(key: str) -> str:
    """The header name for a WSGI environ key, in lower case; '' if the key does not belong to a header."""
    return key[5:].replace('_', '-').lower() if key.startswith('HTTP_') else ''


@functools.lru_cache(maxsize=256)
def end_to_end_name(key: str) -> str:
    """Like ``of_environ_key``, but '' for a hop-by-hop header."""
    name = of_environ_key(key)
    return '' if name in HOP_BY_HOP else name


@functools.lru_cache(maxsize=256)
def client_name(key: str) -> str:
    """Like ``end_to_end_name``, but '' for a header that clients may not set."""
    name = end_to_end_name(key)
    return '' if is_reserved(name) else name


@functools.lru_cache(maxsize=256)
def upstream_name(key: str) -> str:
    """Like ``end_to_end_name``, but '' for a header that is not sent to Nova."""
    name = end_to_end_name(key)
    return name if name in UPSTREAM_ALLOWED else ''


@functools.lru_cache(maxsize=256)
def is_reserved(name: str) -> bool:
    """Whether clients are forbidden to set the header ``name``. Case is ignored, and ``_`` is the same as ``-``."""
    name = name.lower().replace('_', '-')
    return name in RESERVED or name.startswith(RESERVED_PREFIXES)


@functools.lru_cache(maxsize=256)
def is_reserved_key(key: str) -> bool:
    """Whether ``key`` is the environ key of a reserved header."""
    return is_reserved(of_environ_key(key))
