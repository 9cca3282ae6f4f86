# SPDX-License-Identifier: Apache-2.0
"""Requests and responses pass the path byte for byte.

The guest sends them with a plain socket. In Nova's place a server records the requests and sends given responses.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import random
import socket

import pytest

from metadata_wsgi.netns import namespaces
from tests.clients.conftest import INVENTORY, MAC, ROUTER, SECRET
from tests.clients.metadata_path import METADATA, Guest, MetadataPath
from tests.rawserver import RawServer

pytestmark = [pytest.mark.netns, pytest.mark.not_traced]

SEED = 20260731
MIB = 1 << 20


def strings(seed, count=256):
    """Byte strings of up to 4 KiB, reproducible from ``seed``; the first ones are edge cases, such as empty."""
    some = random.Random(seed)
    return [b'', b'\0', b'\r\n\r\n', b'0\r\n\r\n', *(some.randbytes(some.randrange(4096)) for _ in range(count - 4))]


def big():
    return random.Random(SEED).randbytes(16 * MIB)


class RecordingNova:
    """Has a response for each target (without query); ``requests`` are the received bytes."""

    def __init__(self):
        self.responses = {}
        self.server = RawServer(self._script)

    @property
    def requests(self):
        return self.server.requests

    def request_lines(self):
        """The received request lines."""
        return [request.partition(b'\r\n')[0] for request in self.requests]

    def set_response(self, target, body, *headers, framing='length'):
        """Set the response for ``target``. ``framing``: 'length' (Content-Length), 'chunks' or 'close'."""
        head = [b'HTTP/1.1 200 OK', b'Content-Type: application/octet-stream', *headers]
        if framing == 'chunks':
            head.append(b'Transfer-Encoding: chunked')
            pieces = [body[first : first + 1000] for first in range(0, len(body), 1000)]
            body = b''.join(b'%x\r\n%b\r\n' % (len(piece), piece) for piece in pieces) + b'0\r\n\r\n'
        elif framing == 'length':
            head.append(b'Content-Length: %d' % len(body))
        else:
            head.append(b'Connection: close')
        self.responses[target] = (b'\r\n'.join(head) + b'\r\n\r\n', body, framing == 'close')

    def _script(self, peer):
        while request := peer.request():
            method, target, _ = request.split(b' ', 2)
            head, body, closes = self.responses.get(target.partition(b'?')[0], (NOTHING, b'', False))
            peer.send(head + (b'' if method == b'HEAD' else body))
            if closes:
                return


NOTHING = b'HTTP/1.1 204 No Content\r\n\r\n'


@pytest.fixture(scope='module')
def shared_path_and_nova(tmp_path_factory):
    """(guest, RecordingNova), made once for the module: a metadata path with the RecordingNova in Nova's place."""
    nova = RecordingNova()
    metadata_path = MetadataPath(tmp_path_factory.mktemp('bytes'), Guest(ROUTER, MAC))
    (metadata_path.directory / 'inventory.yaml').write_text(INVENTORY)
    options = {
        'directory': 'static', 'metadata_workers': 1, 'metadata_proxy_shared_secret': SECRET,
        'check_services_at_start': False,
    }  # fmt: skip
    try:
        metadata_path.configure(
            {**options, 'nova_metadata_port': nova.server.port},
            f'[static]\ninventory = {metadata_path.directory}/inventory.yaml',
        )
        metadata_path.start_agent()
        metadata_path.attach()
        yield metadata_path.guest, nova
    finally:
        metadata_path.remove()
        nova.server.close()


@pytest.fixture
def nova(shared_path_and_nova):
    shared_path_and_nova[1].responses.clear()
    shared_path_and_nova[1].requests.clear()
    return shared_path_and_nova[1]


class GuestConnection:
    """A connection of the guest with an HTTP ``version`` and a value of the header ``Connection``."""

    def __init__(self, namespace, version=b'1.1', connection_header=b'keep-alive'):
        self._namespace, self._version, self._connection_header = namespace, version, connection_header
        self._sock = None
        self.connections_opened = 0

    def request(self, target, method=b'GET', *headers, body=b''):
        """(status, headers, body) of one request on the open connection, or on a new one."""
        if self._sock is None:
            self._sock = namespaces.run_in(self._namespace, lambda: socket.create_connection((METADATA, 80), 20))
            self.connections_opened += 1
        line = b'%b %b HTTP/%b' % (method, target, self._version)
        lines = [line, b'Host: 169.254.169.254', b'Connection: ' + self._connection_header, *headers]
        self._sock.sendall(b'\r\n'.join(lines) + b'\r\n\r\n' + body)
        response = http.client.HTTPResponse(self._sock, method=method.decode())
        response.begin()
        content = response.read()
        if response.will_close:
            self.close()
        return response.status, response.headers, content

    def close(self):
        if self._sock is not None:
            self._sock.close()
            self._sock = None


@pytest.fixture
def connect(shared_path_and_nova):
    """Opens connections of the guest; closes them after the test."""
    with contextlib.ExitStack() as opened:

        def start(*words):
            made = GuestConnection(shared_path_and_nova[0].namespace, *words)
            opened.callback(made.close)
            return made

        yield start


CONNECTIONS = {
    'http-1.1-keepalive': (b'1.1', b'keep-alive'),
    'http-1.1-close': (b'1.1', b'close'),
    'http-1.0': (b'1.0', b'close'),
    'http-1.0-keepalive': (b'1.0', b'keep-alive'),
}


@pytest.fixture(params=CONNECTIONS)
def connection(request, connect):
    return connect(*CONNECTIONS[request.param])


def test_random_user_data_is_unchanged(connection, nova):
    expected = strings(SEED)
    for number, body in enumerate(expected):
        nova.set_response(b'/openstack/latest/user_data/%d' % number, body)
    received = [connection.request(b'/openstack/latest/user_data/%d' % number)[2] for number in range(len(expected))]
    assert received == expected
    assert len(nova.requests) == len(expected)


def test_keepalive_follows_the_clients_version_and_connection_header(connect, nova):
    nova.set_response(b'/x', b'x')
    opened = {}
    for name, settings in CONNECTIONS.items():
        connection = connect(*settings)
        for _ in range(3):
            assert connection.request(b'/x')[2] == b'x'
        opened[name] = connection.connections_opened
    assert opened['http-1.1-keepalive'] == 1
    assert opened['http-1.1-close'] == opened['http-1.0'] == 3


@pytest.mark.parametrize('framing', ['length', 'chunks', 'close'])
def test_16_mib_of_user_data_are_unchanged(connection, nova, framing):
    expected = big()
    nova.set_response(b'/openstack/latest/user_data', expected, framing=framing)
    # No comparison in the assert itself: pytest's diff of 16 MiB takes minutes.
    same = connection.request(b'/openstack/latest/user_data')[2] == expected
    assert same


@pytest.mark.parametrize('framing', ['chunks', 'close'])
def test_chunked_and_close_delimited_responses_get_a_content_length(connection, nova, framing):
    for number, body in enumerate(strings(SEED + 1, 32)):
        target = b'/%d' % number
        nova.set_response(target, body, framing=framing)
        status, headers, received = connection.request(target)
        assert (status, received) == (200, body)
        assert (headers['Content-Length'], headers['Transfer-Encoding']) == (str(len(body)), None)


@pytest.mark.parametrize('accepts', [(), (b'Accept-Encoding: gzip, deflate',)])
def test_gzip_is_not_decompressed(connection, nova, accepts):
    """Neither a body with Content-Encoding: gzip nor gzipped user-data without that header."""
    packed = gzip.compress(b'#cloud-config\n' * 100)
    nova.set_response(b'/with-header', packed, b'Content-Encoding: gzip')
    nova.set_response(b'/without-header', packed)
    _, headers, body = connection.request(b'/with-header', b'GET', *accepts)
    assert (headers['Content-Encoding'], body) == ('gzip', packed)
    _, headers, body = connection.request(b'/without-header', b'GET', *accepts)
    assert (headers['Content-Encoding'], body) == (None, packed)
    expected = b'accept-encoding: gzip, deflate' if accepts else b'accept-encoding: identity'
    assert all(expected in request.lower() for request in nova.requests)


def test_empty_body_and_204(connection, nova):
    nova.set_response(b'/empty', b'')
    status, headers, body = connection.request(b'/empty')
    assert (status, headers['Content-Length'], body) == (200, '0', b'')
    status, headers, body = connection.request(b'/no-content')
    assert (status, headers['Content-Length'], body) == (204, None, b'')


def test_head_response_has_content_length_and_no_body(connection, nova):
    nova.set_response(b'/openstack', b'x' * 1234)
    status, headers, body = connection.request(b'/openstack', b'HEAD')
    assert (status, headers['Content-Length'], body) == (200, '1234', b'')
    assert nova.request_lines() == [b'HEAD /openstack HTTP/1.1']
    assert connection.request(b'/openstack')[2] == b'x' * 1234


TARGETS = [
    b'/',
    b'//',
    b'//openstack//latest///meta_data.json',
    b'/a%2Fb',
    b'/a%2fb%3Fc%23d',
    b'/openstack/../latest/./meta-data/',
    b'/..',
    b'/%2e%2e/%2E%2E/etc/passwd',
    b'/%68',
    b'/%ff%00%0a',
    b'/%',
    b'/%zz%2',
    b"/+a;b=c,d@e:f!$&'()*~_-",
    b'/?',
    b'/x?a=%2F&b=?c=/d&&=',
    b'/x?q=a+b%20c',
    b'/%C3%BCber?%e4=%F6',
    b'/"<>[]\\^`{|}',
    b'/' + b'long/' * 1500,
]


@pytest.mark.parametrize('target', TARGETS)
def test_raw_request_target_is_unchanged(connection, nova, target):
    assert connection.request(target)[0] == 204
    assert nova.request_lines() == [b'GET %b HTTP/1.1' % target]


@pytest.mark.parametrize('target', [b'/\xc3\xbcber', b'/?\xe4=\xf6'])
def test_non_ascii_request_target_is_rejected(connect, nova, target):
    """RFC 3986 requires percent-encoding; two parsers may read such a target differently."""
    assert connect(*CONNECTIONS['http-1.1-keepalive']).request(target)[0] == 400
    assert not nova.requests


@pytest.mark.parametrize('framing', ['length', 'chunks'])
def test_random_request_bodies_are_unchanged_and_get_a_content_length(connect, nova, framing):
    """A guest may send chunks; Nova responds 500 to chunked requests."""
    connection = connect(*CONNECTIONS['http-1.1-keepalive'])
    expected = strings(SEED + 2, 64)
    for body in expected:
        if framing == 'length':
            connection.request(b'/p', b'POST', b'Content-Length: %d' % len(body), body=body)
        else:
            chunk = b'%x\r\n%b\r\n' % (len(body), body) if body else b''
            connection.request(b'/p', b'POST', b'Transfer-Encoding: chunked', body=chunk + b'0\r\n\r\n')
    heads, received = zip(*(request.split(b'\r\n\r\n', 1) for request in nova.requests), strict=True)
    assert list(received) == expected
    assert all(b'content-length: %d' % len(body) in head for head, body in zip(heads, expected, strict=True))
    assert not any(b'transfer-encoding' in head.lower() for head in heads)
