# SPDX-License-Identifier: Apache-2.0
"""Opening a connection: name resolution, several addresses, TLS handshake, unix backlog; all within the deadline."""

import contextlib
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import gevent.ssl
import pytest
from gevent import socket as gevent_socket

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import NotSent
from metadata_wsgi.http import client, message
from metadata_wsgi.http.tls_socket import TlsSocket
from metadata_wsgi.net.resolver import Address, Resolver, TcpConnector
from tests.rawserver import RawServer, always_responds_with

PEM = str(Path(__file__).parent / 'nova.test.pem')
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
GET = message.Request('GET', '/openstack', [])


@contextlib.contextmanager
def serving(script):
    """A server on loopback that calls ``script(sock)`` for each connection; yields (port, stop)."""
    stop = threading.Event()
    accepted = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                accepted.append(sock)
                threads.append(threading.Thread(target=run, args=(sock,), daemon=True))
                threads[-1].start()

    def run(sock):
        with contextlib.suppress(OSError):
            script(sock, stop)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        threads = [threading.Thread(target=accept, daemon=True)]
        threads[0].start()
        yield listener.getsockname()[1]
        stop.set()
        for sock in (listener, *accepted):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(60)
    for sock in accepted:
        sock.close()


@pytest.fixture(scope='module')
def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


def client_context(module=ssl):
    return module.create_default_context(cafile=PEM)


@pytest.fixture(autouse=True)
def long_connect_timeout(monkeypatch):
    """On a busy machine a TLS handshake may take seconds."""
    monkeypatch.setattr(limits, 'CONNECT_TIMEOUT_S', 60.0)


def loopback(*ips):
    """A connector for which every name has these addresses."""
    return TcpConnector(Resolver(lambda host: [Address(socket.AF_INET, ip) for ip in ips or ('127.0.0.1',)]))


def send(http_client, within_s):
    """The error of a request that gets no connection; it must not take longer than ``within_s``, and some."""
    started_s = time.monotonic()
    with pytest.raises(NotSent) as raised:
        http_client.send_request(GET, Deadline.after(within_s))
    assert time.monotonic() < started_s + within_s + 60, 'far beyond the deadline'
    return str(raised.value)


def test_a_name_that_cannot_be_resolved_in_time_is_not_sent_and_named():
    gate = threading.Event()
    nova = client.tcp_client('nova', 8775, connector=TcpConnector(Resolver(lambda host: gate.wait(30) and [])))
    text = send(nova, 2.0)
    assert re.fullmatch(r'http://nova:8775: name nova could not be resolved within \d\.\d s', text), text
    gate.set()


def test_a_request_goes_to_an_address_of_the_name_that_accepts_connections():
    server = RawServer(always_responds_with(OK))
    nova = client.tcp_client('nova', server.port, connector=loopback('127.0.0.2', '127.0.0.3', '127.0.0.1'))
    assert nova.send_request(GET, Deadline.after(60)).status == 200
    server.close()


def test_requests_over_tls_reuse_a_keepalive_connection(server_context):
    connections = []

    def script(sock, stop):
        with server_context.wrap_socket(sock, server_side=True) as tls:
            connections.append(tls)
            while data := tls.recv(65536):
                assert data.startswith(b'GET /openstack HTTP/1.1\r\n')
                tls.sendall(OK)

    with serving(script) as port:
        nova = client.tcp_client('nova.test', port, tls=client_context(), connector=loopback())
        for _ in range(3):
            response = nova.send_request(GET, Deadline.after(60))
            assert (response.status, response.body) == (200, [b'ok'])
        assert len(connections) == 1
        del nova


def test_a_certificate_for_another_name_is_not_sent(server_context):
    def script(sock, stop):
        with contextlib.suppress(ssl.SSLError), server_context.wrap_socket(sock, server_side=True):
            pass

    with serving(script) as port:
        nova = client.tcp_client('other.test', port, tls=client_context(), connector=loopback())
        assert 'certificate' in send(nova, 60)


def is_silent(sock, stop):
    stop.wait(30)


def trickles(sock, stop):
    """The start of a TLS record, one byte at a time: each read gets something, and the handshake never ends."""
    sock.sendall(b'\x16\x03\x03\x40\x00')
    while not stop.wait(0.05):
        sock.sendall(b'\x02')


@pytest.mark.parametrize('script', [is_silent, trickles])
def test_a_tls_handshake_that_does_not_end_is_a_timeout_at_the_deadline(script):
    with serving(script) as port:
        nova = client.tcp_client('nova.test', port, tls=client_context(), connector=loopback())
        assert send(nova, 2.0) == f'https://nova.test:{port}: the TLS handshake was not complete in time'


@pytest.mark.parametrize('kind', [(socket, ssl), (gevent_socket, gevent.ssl)], ids=['threads', 'gevent'])
def test_a_tls_record_that_trickles_does_not_extend_the_timeout_of_recv(server_context, kind):
    sockets, tls_module = kind

    def script(sock, stop):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server_context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(b'x' * 1000)
        for byte in outgoing.read():
            if stop.wait(0.05):
                return
            sock.sendall(bytes([byte]))

    with serving(script) as port:
        sock = sockets.create_connection(('127.0.0.1', port))
        tls = TlsSocket(sock, client_context(tls_module), 'nova.test', 60)
        tls.settimeout(0.3)
        started_s = time.monotonic()
        with pytest.raises(TimeoutError):
            tls.recv(10)
        assert time.monotonic() < started_s + 60
        tls.close()


@pytest.fixture
def full_backlog(tmp_path):
    """A listening unix socket with a full backlog; yields (path, listener)."""
    path = str(tmp_path / 'socket')
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            if waiting.connect_ex(path):
                break
        yield path, listener


CONNECT = """
import sys, time
from gevent import monkey; monkey.patch_all()
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import NotSent
from metadata_wsgi.http import client, message
agent = client.unix_client(sys.argv[1])
before_s = time.process_time()
try:
    agent.send_request(message.Request('GET', '/', []), Deadline.after(1.0))
except NotSent as error:
    print(error)
print('busy' if time.process_time() - before_s > 0.5 else 'idle')
"""


def test_a_full_unix_backlog_is_a_timeout_without_a_busy_loop(full_backlog):
    path, _ = full_backlog
    done = subprocess.run([sys.executable, '-c', CONNECT, path], capture_output=True, text=True, check=False)
    assert done.stdout == f'unix:{path}: the backlog of the socket stayed full\nidle\n', done.stderr


def test_a_unix_backlog_that_has_room_again_is_connected_to(full_backlog):
    path, listener = full_backlog

    def accept():
        """The connections that filled the backlog send nothing, and the request comes after them."""
        accepted = []
        with contextlib.ExitStack() as stack:
            while True:
                readable, _, _ = select.select([listener, *accepted], [], [], 60)
                assert readable, 'the request does not arrive'
                for sock in readable:
                    if sock is listener:
                        accepted.append(stack.enter_context(listener.accept()[0]))
                    elif sock.recv(65536):
                        sock.sendall(OK)
                        return

    results = []
    agent = client.unix_client(path)
    request = threading.Thread(target=lambda: results.append(agent.send_request(GET, Deadline.after(20))))
    request.start()
    accept()
    request.join(60)
    assert [response.status for response in results] == [200]
