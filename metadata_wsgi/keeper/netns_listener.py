# SPDX-License-Identifier: Apache-2.0
"""Opens a listening socket in a namespace, and checks a socket that another process sent."""

from __future__ import annotations

import os
import socket

from metadata_wsgi.errors import EXHAUSTED, NetnsError
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.net import listeners
from metadata_wsgi.netns import namespaces


class NetnsSocketOpener:
    """Opens and checks real sockets; see :class:`metadata_wsgi.keeper.registry.SocketOpener`."""

    def open(self, listener: Listener) -> socket.socket:
        """Listen in the listener's namespace. NetnsError if there is no such namespace, ConfigError if bind() fails."""
        if not namespaces.exists(listener.namespace):
            raise NetnsError(f'there is no namespace {listener.namespace} on this host')
        opened = namespaces.run_in(listener.namespace, lambda: listeners.bind_tcp(listener.host, listener.port))
        opened.setblocking(False)
        return opened

    def is_valid(self, listener: Listener, sock: socket.socket) -> bool:
        """Whether ``sock`` is a TCP socket that listens on the listener's port in the listener's namespace.

        An unprivileged worker sends the socket and the listener's fields. The fields may be false, so this method
        compares them with the socket's state in the kernel. Raises OSError if descriptors or memory are exhausted: then
        it is unknown whether the socket is valid.
        """
        try:
            return (
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
                and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
                and sock.getsockname()[1] == listener.port
                and namespaces.identity_of(sock) == namespaces.identity(listener.namespace)
            )
        except OSError as error:
            if error.errno in EXHAUSTED:
                raise
            return False

    def inode(self, sock: socket.socket) -> int:
        """The inode number. All copies of one socket have the same number, and no other open socket has it."""
        return os.fstat(sock.fileno()).st_ino

    def namespace_exists(self, listener: Listener) -> bool:
        """Whether the listener's namespace exists."""
        return namespaces.exists(listener.namespace)
