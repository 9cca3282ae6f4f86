# SPDX-License-Identifier: Apache-2.0
"""The exceptions that one package raises and another one handles, and the errno values of exhausted resources.

::

    MetadataError
    ├── ConfigError              an option, the paste file or the inventory is wrong; the program does not start
    ├── BadRequest               the request itself is wrong; the client gets 400
    │   └── RequestTimeout       the request body did not arrive in time; the client gets 408
    ├── InstanceLookupError      the lookup of an instance failed, and a retry will not help
    │   └── LookupUnavailable    the lookup failed, and a retry may succeed; it is retried until the deadline
    │       └── IncompleteResult the lists of Neutron, or the inventory, lack ports of the source of this request
    ├── NoResponse               the agent or Nova sent no complete response
    │   ├── NotSent              the server cannot have received the request: even a POST may be retried
    │   └── MaybeSent            the server may have processed the request: only GET and HEAD may be retried
    ├── NetnsError               a namespace, rule, socket or process could not be made or removed
    └── UsageError               wrong arguments of a command, or missing privileges

Code that calls a library converts the library's exceptions to these exceptions.
"""

from __future__ import annotations

import errno

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""A call fails with these errno values if descriptors or memory are exhausted, whatever its arguments are.

So the failure does not mean that a namespace, socket or process is gone.
"""


class MetadataError(Exception):
    """Base class of all exceptions in this module."""


class ConfigError(MetadataError):
    """The configuration cannot work. The text names the option, its value and a value that would work."""


class BadRequest(MetadataError):
    """No server could process this request. The text is one sentence for the client."""


class RequestTimeout(BadRequest):
    """The request body did not arrive in time (408). The fault is in the client, not in the agent or Nova."""


class InstanceLookupError(MetadataError):
    """The lookup failed, and a retry will not help.

    For example: Neutron shows no ports at all to the agent's role.
    """


class LookupUnavailable(InstanceLookupError):
    """The lookup failed because Neutron or Keystone is unreachable, slow or failing. A retry may succeed."""


class IncompleteResult(LookupUnavailable):
    """Neutron responded, but the lists for one network or router contradict each other or the request.

    Or an address is not in the inventory, while a newer inventory is being read. This says nothing about the lookups of
    other networks and routers. A router that was deleted in Neutron, but still exists on the host, has this error in
    every lookup.
    """


class NoResponse(MetadataError):
    """The agent or Nova sent no complete response."""


class NotSent(NoResponse):
    """The request cannot have been received: connection refused, host unreachable, no connection in time."""


class MaybeSent(NoResponse):
    """The request may have been received: the connection broke or timed out after the request was written."""


class NetnsError(MetadataError):
    """The kernel, or a program that configures it, reported an error. The text includes its message."""


class UsageError(MetadataError):
    """The arguments contradict each other, or the command needs root. Nothing was done."""
