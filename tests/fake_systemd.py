# SPDX-License-Identifier: Apache-2.0
"""Receives the notifications of a service, as systemd does: sd_notify(3)."""

import array
import os
import socket


class FakeSystemd:
    """Receives notifications at ``address``, the value for NOTIFY_SOCKET. Returns inode numbers for descriptors."""

    def __init__(self, address):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind('\0' + address[1:] if address.startswith('@') else address)
        self._socket.setblocking(False)

    def received(self):
        """The notifications since the last call, each as a tuple of its lines and inode numbers."""
        received = []
        while True:
            try:
                text, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return received
            received.append((*text.decode().splitlines(), *(_inode(data) for _, _, data in ancillary)))

    def close(self):
        self._socket.close()


def _inode(data):
    (descriptor,) = array.array('i', data)
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
