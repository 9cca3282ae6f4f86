# SPDX-License-Identifier: Apache-2.0
"""Open a listening socket in a namespace, and tell whether one that is handed over is such a socket."""

from __future__ import annotations

import os
import socket

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.net import listeners
from metadata_wsgi.netns import namespaces


class NamespaceOpener:
    """The kernel's sockets; see :class:`metadata_wsgi.keeper.registry.Opener`."""

    def open(self, listener: Listener) -> socket.socket:
        """Listen in the namespace. NetnsError if there is none of that name, ConfigError if the port is in use."""
        if not namespaces.exists(listener.namespace):
            raise NetnsError(f'there is no namespace {listener.namespace} on this host')
        opened = namespaces.run_in(
            listener.namespace, lambda: listeners.tcp_listener(listener.host, listener.port, patience_s=0.0)
        )
        opened.setblocking(False)
        return opened

    def fits(self, listener: Listener, kept: socket.socket) -> bool:
        """A TCP socket that listens on the port, in the namespace that has the name now: asked from the kernel.

        A worker, unprivileged, hands back sockets with words of its own about them.
        """
        try:
            return (
                kept.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
                and bool(kept.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
                and kept.getsockname()[1] == listener.port
                and namespaces.identity_of(kept) == namespaces.identity(listener.namespace)
            )
        except OSError:
            return False

    def are_one(self, kept: socket.socket, other: socket.socket) -> bool:
        """By the number of the socket in the kernel's file system of sockets."""
        return os.fstat(kept.fileno()).st_ino == os.fstat(other.fileno()).st_ino

    def is_gone(self, listener: Listener) -> bool:
        """Whether nothing has the name."""
        return not namespaces.exists(listener.namespace)
