# SPDX-License-Identifier: Apache-2.0
import contextlib
import socket

from metadata_wsgi.net.queue_wait import queue_wait_s
from tests.e2e.conftest import eventually


def test_the_wait_of_a_connection_in_the_accept_queue_is_the_age_of_its_data():
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        client.sendall(b'GET / HTTP/1.1\r\n\r\n')
        accepted = stack.enter_context(listener.accept()[0])
        before_s = queue_wait_s(accepted)
        eventually(lambda: queue_wait_s(accepted) > before_s, 'the wait grows')
        eventually(lambda: queue_wait_s(accepted) > 0.05, 'the wait grows')

        def wait_after_new_data_s():
            # Sent before each look: the wait grows again at once.
            client.sendall(b'more')
            return queue_wait_s(accepted)

        eventually(lambda: wait_after_new_data_s() < 0.05, 'new data end it')


def test_a_unix_socket_has_no_wait():
    one, other = socket.socketpair()
    with one, other:
        assert queue_wait_s(one) == 0.0
