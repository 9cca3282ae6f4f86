# SPDX-License-Identifier: Apache-2.0
"""Header names on the three wires: guest to namespace proxy, namespace proxy to agent, agent to Nova.

Constants and two questions about them; nothing here knows a request. Names are lower case and are
compared so: field names have no case (RFC 9110, 5.1).
"""

from __future__ import annotations

import functools
from typing import Final

FORWARDED_FOR: Final = 'x-forwarded-for'
INSTANCE_ID: Final = 'x-instance-id'
TENANT_ID: Final = 'x-tenant-id'
SIGNATURE: Final = 'x-instance-id-signature'
REMAINING_MS: Final = 'x-metadata-remaining-ms'
"""How many milliseconds the namespace proxy will still wait for the agent's answer."""

CLIENT_FORWARDED: Final = 'x-metadata-guest-forwarded'
"""``1`` from the namespace proxy where the guest itself sent one of ``FORWARDING``, which the proxy deletes."""
HOP_LIMIT: Final = 'x-metadata-hop-limit'
"""In an answer: over how many hops it may go to the guest. Acted on and removed where the guest's socket is."""

TOKEN_TTL: Final = 'x-aws-ec2-metadata-token-ttl-seconds'  # noqa: S105 (a header's name)
"""How long a session token is to last, asked and answered."""

FORWARDING: Final = frozenset({FORWARDED_FOR, 'forwarded'})
"""What a proxy says about for whom it asks; a guest's own program does not."""

PREFIXES: Final = ('x-quantum', 'x-neutron', 'x-ovn')
"""Every prefix under which some agent has taken a router's or network's id. One of them is trusted."""


def router_id(prefix: str) -> str:
    """The header that carries the router's id under ``prefix``."""
    return f'{prefix}-router-id'


def network_id(prefix: str) -> str:
    """The header that carries the network's id under ``prefix``."""
    return f'{prefix}-network-id'


# What a guest may not say: each of these names somebody, or steers who is named, at one of the parts
# between here and Nova. x-metadata-provider switches Nova to another authentication (load balancers).
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
    }
)

# RFC 9110, 7.6.1, and the older names that still do harm when they are passed on.
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

# What Nova is told besides the signature: how the guest wants the answer, and what it sends.
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
        FORWARDED_FOR,
        INSTANCE_ID,
        TENANT_ID,
        SIGNATURE,
    }
)


@functools.lru_cache(maxsize=256)
def is_reserved(name: str) -> bool:
    """Whether ``name`` (any case, ``-`` or ``_``) is one that a guest may not say."""
    name = name.lower().replace('_', '-')
    return name in RESERVED or name.startswith(RESERVED_PREFIXES)


@functools.lru_cache(maxsize=256)
def is_reserved_key(key: str) -> bool:
    """Whether ``key`` is the environ key of such a header."""
    return key.startswith('HTTP_') and is_reserved(key[5:])
