# SPDX-License-Identifier: Apache-2.0
"""A connection to the kernel's interface and address tables (rtnetlink) in a namespace.

pyroute2 opens a socket in a namespace by a fork of this process. This process has other threads, and Python does not
support that: on Python 3.13 the child may never respond. So the socket is opened in the namespace by a thread, and
pyroute2 gets the open socket.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from metadata_wsgi.netns import namespaces

if TYPE_CHECKING:
    from pyroute2 import IPRoute


def connect(namespace: str) -> IPRoute:
    """A connection for this thread only; close it. Raises NetnsError if the namespace cannot be entered."""
    # Here, because importing pyroute2 takes longer than the rest of most commands.
    from pyroute2 import IPRoute

    opened = namespaces.run_in(
        namespace, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
    )
    return IPRoute(fileno=opened.detach())
