# SPDX-License-Identifier: Apache-2.0
"""Everything that this package raises.

::

    MetadataError
    ├── ConfigError            an option, a paste file or an inventory that cannot work; stops the start
    ├── BadRequest           the request itself is wrong; its text is for the guest (400)
    │   └── RequestTimeout      its body did not arrive in time; a fault of the client (408)
    ├── InstanceLookupError         nobody could be asked who is at an address
    │   └── LookupUnavailable   ... for now: asked again until the deadline
    ├── NoResponse          the next hop gave no answer
    │   ├── NotSent                ... and cannot have seen the request: even a POST may be repeated
    │   └── MaybeSent              ... and may have acted on it: only a read may be repeated
    └── NetnsError          a namespace, rule, socket or process could not be made or removed

A library's own exceptions are translated where the library is called.
"""

from __future__ import annotations


class MetadataError(Exception):
    """The root: catch it to catch what this package foresaw."""


class ConfigError(MetadataError):
    """What the operator wrote cannot work. The text names the option, the value and what would be right."""


class BadRequest(MetadataError):
    """The request cannot be answered by anybody. The text is a sentence for the guest."""


class RequestTimeout(BadRequest):
    """The request body did not arrive in time (408). A fault of the client: no service behind this one is to blame."""


class InstanceLookupError(MetadataError):
    """The directory cannot say who is at an address, and asking again will not help.

    For example: Quantum shows this agent's role no ports at all.
    """


class LookupUnavailable(InstanceLookupError):
    """The directory cannot say so now: unreachable, slow, or failing."""


class NoResponse(MetadataError):
    """The next hop on the way gave no complete answer."""


class NotSent(NoResponse):
    """No byte of the request can have been acted on (refused, unreachable, no connection in time)."""


class MaybeSent(NoResponse):
    """The request may have been received: the connection broke or stayed silent after it was written."""


class NetnsError(MetadataError):
    """The kernel, or a program that speaks to it, refused. The text has its own words."""
