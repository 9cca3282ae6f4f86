# SPDX-License-Identifier: Apache-2.0
"""A connection to the kernel's interface and address tables (rtnetlink) in a namespace.

To open a socket in a namespace, pyroute2 would fork this process. Python does not support the fork of a process that
has threads: on Python 3.13 the child may never respond. So a thread opens the socket in the namespace, and pyroute2
gets the open socket.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from metadata_wsgi.netns import namespaces

if TYPE_CHECKING:
    from pyroute2 import IPRoute


def connect(namespace: str) -> IPRoute:
    """A connection for this thread only. The caller closes it. Raises NetnsError if the namespace cannot be entered."""
    # Imported here: this import takes longer than the rest of most commands.
    from pyroute2 import IPRoute

    opened = namespaces.run_in(
        namespace, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
    )
    return IPRoute(fileno=opened.detach())
