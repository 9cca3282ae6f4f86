# SPDX-License-Identifier: Apache-2.0
"""A client that sends its request body too slowly gets 408, and no log line blames the agent or Nova."""

import contextlib
import re
import socket

import pytest

POST = b'POST /openstack/2013-04-04/password HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n'


def trickle(sock, header):
    """The response to a request whose body arrives one byte at a time, without end."""
    with sock:
        sock.sendall(header + b'\r\n')
        sock.settimeout(0.1)
        received = b''
        for _ in range(200):
            with contextlib.suppress(OSError):
                sock.sendall(b'x')
            with contextlib.suppress(TimeoutError):
                piece = sock.recv(65536)
                received += piece
                if not piece:
                    return received
    pytest.fail(f'no end of the response: {received}')


@pytest.fixture(params=['namespace proxy', 'agent'])
def send(request, agent, proxy, cloud):
    """A function that sends the slow request, and the program that receives it."""
    if request.param == 'agent':
        cloud.configure(request_timeout=1.5)
        program = agent()

        def to_agent():
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(cloud.socket))
            return trickle(sock, POST + b'X-Forwarded-For: 10.1.1.2\r\nX-Quantum-Router-ID: router-a\r\n')

        return to_agent, program
    agent()
    program, port = proxy(None, '--answer_within=1.5')
    return lambda: trickle(socket.create_connection(('127.0.0.1', port)), POST), program


def test_a_slow_request_body_is_a_408_and_no_fault_of_agent_or_nova(send, cloud):
    request, program = send
    for _ in range(3):
        response = request()
        assert response.startswith(b'HTTP/1.1 408 ')
        assert b'The request body did not arrive in time.' in response
    assert cloud.nova.seen == []
    assert 'no response from' not in program.text()
    assert not re.search(r'(WARNING|ERROR) metadata_wsgi.(nova_proxy|namespace_proxy|filters)', program.text())
    assert program.text().count('its client did not send the body in time') == 1
