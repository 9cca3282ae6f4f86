# SPDX-License-Identifier: Apache-2.0
"""Over loopback, with a server that misbehaves."""

import gzip
import ssl
import subprocess
import sys
import threading
from contextlib import closing

import pytest
import requests

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.lookup.neutron import transport
from metadata_wsgi.lookup.neutron.transport import DeadlineAdapter, deadline_scope
from metadata_wsgi.net import resolver
from tests.rawserver import RawServer, always_responds_with, never_responds, responds_with

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'


@pytest.fixture
def served():
    """A function: the scripts of a server -> the server, and a function that sends a GET to it."""
    made = []

    def serve(*scripts):
        server, session = RawServer(*scripts), requests.Session()
        session.trust_env = False
        session.mount('http://', DeadlineAdapter(pool_maxsize=2))
        made.append((server, session))

        def get(timeout_s=9.0, **more):
            with deadline_scope(Deadline.after(timeout_s)):
                return session.get(f'http://127.0.0.1:{server.port}/', **more)

        return server, get

    yield serve
    for server, session in made:
        session.close()
        server.close()


def drips(chunk):
    """Start a response and send ``chunk`` repeatedly: no single read takes long."""

    def script(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n')
        while not peer.server.stop.wait(0.02):
            peer.send(chunk)

    return script


def test_the_whole_response_is_read(served):
    _, get = served(always_responds_with(OK))
    assert get().content == b'ok'


def test_a_connection_is_reused_keepalive(served):
    server, get = served(always_responds_with(OK))
    for _ in range(3):
        get()
    assert server.connections == 1


def test_chunked_and_gzip_responses(served):
    packed = gzip.compress(b'ports' * 1000)
    chunk = b'%x\r\n%b\r\n0\r\n\r\n' % (len(packed), packed)
    head = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n'
    server, get = served(always_responds_with(head + chunk))
    assert [get().content, get().content] == [b'ports' * 1000] * 2
    assert server.connections == 1


@pytest.mark.parametrize('script', [never_responds, drips(b'x'), drips(b'')], ids=['silent', 'dripping', 'stuck'])
def test_the_deadline_ends_a_stalled_or_dripping_response_timeout(served, script):
    """A timeout of each single read would never end a response that drips."""
    _, get = served(script)
    with pytest.raises(requests.exceptions.Timeout):
        get(timeout_s=0.3)


def tls_record_byte_by_byte(peer):
    """The start of a TLS record: each read gets something, and the handshake never ends."""
    peer.send(b'\x16\x03\x03\x40\x00')
    while not peer.server.stop.wait(0.02):
        peer.send(b'\x02')


def header_byte_by_byte(peer):
    peer.request()
    peer.send(b'HTTP/1.1 200 OK\r\nX-Endless: ')
    while not peer.server.stop.wait(0.02):
        peer.send(b'x')


GET_WITH_DEADLINE = """
import sys
if sys.argv[1] == 'gevent':
    from gevent import monkey
    monkey.patch_all()
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.lookup.neutron import transport
session = transport.make_session(2)
try:
    with transport.deadline_scope(Deadline.after(3.0)):
        session.get(sys.argv[2])
except transport.requests.exceptions.Timeout as error:
    print(transport.describe(error))
"""


@pytest.mark.parametrize('threads', ['threads', 'gevent'])
@pytest.mark.parametrize(
    ('scheme', 'script', 'reason'),
    [
        ('https', tls_record_byte_by_byte, 'the TLS handshake was not complete in time'),
        ('http', header_byte_by_byte, 'the response was not complete in time'),
    ],
)
def test_the_deadline_ends_a_handshake_or_header_that_arrives_byte_by_byte_timeout(scheme, script, reason, threads):
    """gevent's timeout of a TLS handshake, and everybody's of a header, counts from the last byte."""
    server = RawServer(script)
    try:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', GET_WITH_DEADLINE, threads, f'{scheme}://127.0.0.1:{server.port}/'],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        server.close()
    assert (done.stdout.strip(), done.stderr) == (reason, '')


def test_a_body_without_length_that_does_not_end_is_a_timeout_and_no_short_body(served):
    def starts(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\n\r\n[')
        peer.server.stop.wait(10)

    _, get = served(starts)
    with pytest.raises(requests.exceptions.Timeout):
        get(timeout_s=0.3)


def test_the_timeout_argument_of_the_caller_is_ignored(served):
    """keystoneauth passes the same timeout with every request."""
    released = threading.Event()

    def late(peer):
        peer.request()
        released.wait(0.3)
        peer.send(OK)

    _, get = served(late)
    assert get(timeout=0.01).content == b'ok'


def test_after_the_deadline_nothing_is_sent(served):
    server, get = served(always_responds_with(OK))
    with pytest.raises(requests.exceptions.Timeout):
        get(timeout_s=0)
    assert server.connections == 0


def test_a_truncated_response_is_an_error_and_its_connection_is_not_reused(served):
    cut = responds_with(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf')
    server, get = served(cut, always_responds_with(OK))
    with pytest.raises(requests.exceptions.ConnectionError):
        get()
    assert get().content == b'ok'
    assert server.connections == 2


def test_an_endless_response_is_an_error(served):
    def endless(peer):
        peer.request()
        peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        while True:
            peer.send(b'x' * transport.CHUNK_BYTES)

    _, get = served(endless)
    with pytest.raises(requests.exceptions.ConnectionError, match='longer than'):
        get()


def test_a_compressed_response_that_is_too_large_is_an_error(served):
    packed = gzip.compress(bytes(transport.MAX_RESPONSE_BYTES + 1))
    head = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n' % len(packed)
    _, get = served(always_responds_with(head + packed))
    with pytest.raises(requests.exceptions.ConnectionError, match='longer than'):
        get()


def test_invalid_gzip_is_an_error_of_requests(served):
    _, get = served(always_responds_with(b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok'))
    with pytest.raises(requests.exceptions.ConnectionError):
        get()


def test_nested_scopes_have_their_own_deadlines(served):
    _, get = served(always_responds_with(OK))
    with deadline_scope(Deadline.after(0)):
        assert get().content == b'ok'


@pytest.fixture
def names(monkeypatch):
    """A function that gives names addresses: name -> addresses, or a function that looks the name up."""

    def use(lookup):
        monkeypatch.setattr(resolver, 'SHARED', resolver.TcpConnector(resolver.Resolver(lookup)))

    return use


def get(url, timeout_s, **more):
    with closing(transport.make_session(1)) as session, deadline_scope(Deadline.after(timeout_s)):
        return session.get(url, **more)


def test_name_resolution_ends_at_the_deadline_timeout(names):
    """No timeout reaches getaddrinfo: with dead name servers it takes up to 40 s."""
    released = threading.Event()
    names(lambda host: released.wait(20) and [])
    with pytest.raises(requests.exceptions.RequestException) as raised:
        get('http://keystone.example.net:5000/v3', 0.3)
    released.set()
    assert transport.describe(raised.value).startswith(
        'no connection to keystone.example.net port 5000: name keystone.example.net could not be resolved within'
    )


def test_a_name_with_a_dead_address_first_is_answered_and_the_good_one_is_tried_first_then(names):
    """192.0.2.1 is for documentation: a connection to it stays without an answer, or is refused at once."""
    with closing(RawServer(always_responds_with(OK))) as server:
        addresses = [resolver.Address(2, '192.0.2.1'), resolver.Address(2, '127.0.0.1')]
        names(lambda host: addresses)
        for _ in range(2):
            assert get(f'http://keystone:{server.port}/', 20.0).content == b'ok'
        assert server.connections == 2


def test_a_refused_connection_is_described_without_a_url(names):
    names(lambda host: [resolver.Address(2, '127.0.0.1')])
    with pytest.raises(requests.exceptions.ConnectionError) as raised:
        get('http://keystone:1/v3/auth/tokens?secret', 9.0)
    assert transport.describe(raised.value) == 'no connection to keystone port 1: Connection refused'


@pytest.fixture
def certificate(tmp_path):
    """A certificate of 127.0.0.1 that is its own CA: (certificate, key)."""
    files = str(tmp_path / 'cert.pem'), str(tmp_path / 'key.pem')
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=127.0.0.1',
         '-addext', 'subjectAltName = IP:127.0.0.1', '-out', files[0], '-keyout', files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.fixture
def tls_port(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def respond(peer):
        with context.wrap_socket(peer.sock, server_side=True) as sock:
            sock.recv(65536)
            sock.sendall(OK)

    with closing(RawServer(respond)) as server:
        yield server.port


def test_the_ca_certificates_of_this_machine_are_used(tls_port, certificate, monkeypatch):
    """SSL_CERT_FILE replaces them, for OpenSSL and so for the connections to Nova too."""
    monkeypatch.setenv('SSL_CERT_FILE', certificate[0])
    assert transport.machine_ca_store() == certificate[0]
    assert get(f'https://127.0.0.1:{tls_port}/', 9.0, verify=transport.machine_ca_store()).content == b'ok'


def test_an_unknown_ca_is_an_error_that_names_auth_ca_cert(tls_port):
    with pytest.raises(requests.exceptions.SSLError) as raised:
        get(f'https://127.0.0.1:{tls_port}/', 9.0, verify=transport.machine_ca_store())
    text = transport.describe(raised.value)
    assert 'CERTIFICATE_VERIFY_FAILED' in text
    assert 'auth_ca_cert' in text


def test_a_machine_without_ca_certificates_is_an_error_that_names_auth_ca_cert(tls_port):
    with pytest.raises(requests.exceptions.SSLError, match='no CA certificates at /nowhere; set auth_'):
        get(f'https://127.0.0.1:{tls_port}/', 9.0, verify='/nowhere')
