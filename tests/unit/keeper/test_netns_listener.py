# SPDX-License-Identifier: Apache-2.0
"""The check of a socket that another process sent, in the network namespace of the test."""

import errno
import os
import socket

import pytest

from metadata_wsgi.keeper.netns_listener import NetnsSocketOpener
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.netns import namespaces


@pytest.mark.parametrize(
    ('number', 'is_known'),
    [(errno.EMFILE, False), (errno.ENFILE, False), (errno.ENOMEM, False), (errno.EPERM, True), (errno.ENOTTY, True)],
    ids=errno.errorcode.get,
)
def test_socket_is_not_invalid_because_descriptors_or_memory_are_exhausted(monkeypatch, number, is_known):
    def identity_of(sock):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(namespaces, 'identity_of', identity_of)
    with socket.create_server(('127.0.0.1', 0)) as sock:
        listener = Listener('shared', 'qrouter-a', sock.getsockname()[1], router_id='a')
        if is_known:
            assert NetnsSocketOpener().is_valid(listener, sock) is False
            return
        with pytest.raises(OSError, match=os.strerror(number)):
            NetnsSocketOpener().is_valid(listener, sock)
