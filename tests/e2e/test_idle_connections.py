# SPDX-License-Identifier: Apache-2.0
"""Idle keep-alive connections of some namespace proxies do not keep the requests of others out of the agent."""

import contextlib
import socket

CONNECTIONS = 16
"""The smallest ``metadata_connections``."""
GET = b'GET /openstack HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.1.1.2\r\nX-Quantum-Router-ID: router-a\r\n\r\n'


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path))
    return connection


def get(connection):
    """The status of a request on a keep-alive connection; '' if the server has closed it."""
    connection.sendall(GET)
    return connection.recv(65536).decode()[9:12]


def test_idle_keepalive_connections_are_closed_for_a_new_one(agent, cloud):
    cloud.configure(metadata_connections=CONNECTIONS)
    agent()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(cloud.socket)) for _ in range(CONNECTIONS)]
        assert [get(connection) for connection in idle] == ['200'] * CONNECTIONS
        new = [stack.enter_context(connect(cloud.socket)) for _ in range(2)]
        assert [get(connection) for connection in new] == ['200'] * 2
        # Those that were idle longest are closed, the others serve on.
        assert [connection.recv(1) for connection in idle[:2]] == [b'', b'']
        assert get(idle[-1]) == '200'
