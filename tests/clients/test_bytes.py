# SPDX-License-Identifier: Apache-2.0
"""The same bytes at both ends of the way: a guest with a plain socket, and in Nova's place a server that keeps
what arrives and answers what it is told to.
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
from tests.clients.way import METADATA, Guest, Way
from tests.rawserver import RawServer

pytestmark = pytest.mark.netns

SEED = 20260731
MIB = 1 << 20


def strings(seed, count=256):
    """Byte strings of up to 4 KiB; the first ones are short, empty among them, and all bytes occur."""
    some = random.Random(seed)
    return [b'', b'\0', b'\r\n\r\n', b'0\r\n\r\n', *(some.randbytes(some.randrange(4096)) for _ in range(count - 4))]


def big():
    return random.Random(SEED).randbytes(16 * MIB)


class Recorder:
    """Answers by target, without the query; ``requests`` are the bytes that arrived."""

    def __init__(self):
        self.answers = {}
        self.server = RawServer(self._script)

    @property
    def requests(self):
        return self.server.requests

    def lines(self):
        """The request lines that arrived."""
        return [request.partition(b'\r\n')[0] for request in self.requests]

    def says(self, target, body, *headers, framing='length'):
        """Let a target be answered with ``body``: its length said, in chunks, or until the connection closes."""
        head = [b'HTTP/1.1 200 OK', b'Content-Type: application/octet-stream', *headers]
        if framing == 'chunks':
            head.append(b'Transfer-Encoding: chunked')
            pieces = [body[first : first + 1000] for first in range(0, len(body), 1000)]
            body = b''.join(b'%x\r\n%b\r\n' % (len(piece), piece) for piece in pieces) + b'0\r\n\r\n'
        elif framing == 'length':
            head.append(b'Content-Length: %d' % len(body))
        else:
            head.append(b'Connection: close')
        self.answers[target] = (b'\r\n'.join(head) + b'\r\n\r\n', body, framing == 'close')

    def _script(self, peer):
        while request := peer.request():
            method, target, _ = request.split(b' ', 2)
            head, body, closes = self.answers.get(target.partition(b'?')[0], (NOTHING, b'', False))
            peer.send(head + (b'' if method == b'HEAD' else body))
            if closes:
                return


NOTHING = b'HTTP/1.1 204 No Content\r\n\r\n'


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """(guest, recorder): a way with the recorder at its end."""
    recorder = Recorder()
    way = Way(tmp_path_factory.mktemp('bytes'), Guest(ROUTER, MAC))
    (way.directory / 'inventory.yaml').write_text(INVENTORY)
    options = {
        'directory': 'static', 'metadata_workers': 1, 'metadata_proxy_shared_secret': SECRET,
        'check_services_at_start': False,
    }  # fmt: skip
    try:
        way.configure(
            {**options, 'nova_metadata_port': recorder.server.port},
            f'[static]\ninventory = {way.directory}/inventory.yaml',
        )
        way.start_agent()
        way.attach()
        yield way.guest, recorder
    finally:
        way.remove()
        recorder.server.close()


@pytest.fixture
def recorder(shared):
    shared[1].answers.clear()
    shared[1].requests.clear()
    return shared[1]


class Connection:
    """A connection of the guest's; ``version`` and what ``Connection`` says are its own choice."""

    def __init__(self, namespace, version=b'1.1', says=b'keep-alive'):
        self._namespace, self._version, self._says = namespace, version, says
        self._sock = None
        self.opened = 0

    def ask(self, target, method=b'GET', *headers, body=b''):
        """(status, headers, body), on the connection that is open or on a new one."""
        if self._sock is None:
            self._sock = namespaces.run_in(self._namespace, lambda: socket.create_connection((METADATA, 80), 20))
            self.opened += 1
        line = b'%b %b HTTP/%b' % (method, target, self._version)
        lines = [line, b'Host: 169.254.169.254', b'Connection: ' + self._says, *headers]
        self._sock.sendall(b'\r\n'.join(lines) + b'\r\n\r\n' + body)
        answer = http.client.HTTPResponse(self._sock, method=method.decode())
        answer.begin()
        content = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, answer.headers, content

    def close(self):
        if self._sock is not None:
            self._sock.close()
            self._sock = None


@pytest.fixture
def connect(shared):
    """Opens the guest's connections; closes them."""
    with contextlib.ExitStack() as opened:

        def start(*words):
            made = Connection(shared[0].namespace, *words)
            opened.callback(made.close)
            return made

        yield start


HOW = {
    'http-1.1-kept': (b'1.1', b'keep-alive'),
    'http-1.1-closed': (b'1.1', b'close'),
    'http-1.0': (b'1.0', b'close'),
    'http-1.0-kept': (b'1.0', b'keep-alive'),
}


@pytest.fixture(params=HOW)
def connection(request, connect):
    return connect(*HOW[request.param])


def test_random_user_data_arrives_identical(connection, recorder):
    wanted = strings(SEED)
    for number, body in enumerate(wanted):
        recorder.says(b'/openstack/latest/user_data/%d' % number, body)
    arrived = [connection.ask(b'/openstack/latest/user_data/%d' % number)[2] for number in range(len(wanted))]
    assert arrived == wanted
    assert len(recorder.requests) == len(wanted)


def test_connections_are_kept_as_the_guest_wants_it(connect, recorder):
    recorder.says(b'/x', b'x')
    opened = {}
    for name, how in HOW.items():
        connection = connect(*how)
        for _ in range(3):
            assert connection.ask(b'/x')[2] == b'x'
        opened[name] = connection.opened
    assert opened['http-1.1-kept'] == 1
    assert opened['http-1.1-closed'] == opened['http-1.0'] == 3


@pytest.mark.parametrize('framing', ['length', 'chunks', 'close'])
def test_16_mib_of_user_data_arrive_identical(connection, recorder, framing):
    wanted = big()
    recorder.says(b'/openstack/latest/user_data', wanted, framing=framing)
    # Not compared by assert, whose explanation would take minutes.
    same = connection.ask(b'/openstack/latest/user_data')[2] == wanted
    assert same


@pytest.mark.parametrize('framing', ['chunks', 'close'])
def test_an_answer_without_length_arrives_identical_and_has_one(connection, recorder, framing):
    for number, body in enumerate(strings(SEED + 1, 32)):
        target = b'/%d' % number
        recorder.says(target, body, framing=framing)
        status, headers, arrived = connection.ask(target)
        assert (status, arrived) == (200, body)
        assert (headers['Content-Length'], headers['Transfer-Encoding']) == (str(len(body)), None)


@pytest.mark.parametrize('accepts', [(), (b'Accept-Encoding: gzip, deflate',)])
def test_gzip_is_nobodys_to_open(connection, recorder, accepts):
    """Neither what says that it is gzip nor user-data that is, to which no header belongs."""
    packed = gzip.compress(b'#cloud-config\n' * 100)
    recorder.says(b'/said', packed, b'Content-Encoding: gzip')
    recorder.says(b'/unsaid', packed)
    _, said, body = connection.ask(b'/said', b'GET', *accepts)
    assert (said['Content-Encoding'], body) == ('gzip', packed)
    _, said, body = connection.ask(b'/unsaid', b'GET', *accepts)
    assert (said['Content-Encoding'], body) == (None, packed)
    wanted = b'accept-encoding: gzip, deflate' if accepts else b'accept-encoding: identity'
    assert all(wanted in request.lower() for request in recorder.requests)


def test_nothing_is_an_answer_too(connection, recorder):
    recorder.says(b'/empty', b'')
    status, headers, body = connection.ask(b'/empty')
    assert (status, headers['Content-Length'], body) == (200, '0', b'')
    status, headers, body = connection.ask(b'/no-content')
    assert (status, headers['Content-Length'], body) == (204, None, b'')


def test_head_has_the_length_and_no_body(connection, recorder):
    recorder.says(b'/openstack', b'x' * 1234)
    status, headers, body = connection.ask(b'/openstack', b'HEAD')
    assert (status, headers['Content-Length'], body) == (200, '1234', b'')
    assert recorder.lines() == [b'HEAD /openstack HTTP/1.1']
    assert connection.ask(b'/openstack')[2] == b'x' * 1234


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
def test_a_raw_target_arrives_unchanged(connection, recorder, target):
    assert connection.ask(target)[0] == 204
    assert recorder.lines() == [b'GET %b HTTP/1.1' % target]


@pytest.mark.parametrize('target', [b'/\xc3\xbcber', b'/?\xe4=\xf6'])
def test_a_target_that_is_no_ascii_is_no_http(connect, recorder, target):
    """RFC 3986 has such bytes percent-encoded; unencoded, two readers may make two targets of them."""
    assert connect(*HOW['http-1.1-kept']).ask(target)[0] == 400
    assert not recorder.requests


@pytest.mark.parametrize('framing', ['length', 'chunks'])
def test_random_bodies_arrive_identical_and_with_their_length(connect, recorder, framing):
    """A guest may post in chunks; Nova answers 500 to them."""
    connection = connect(*HOW['http-1.1-kept'])
    wanted = strings(SEED + 2, 64)
    for body in wanted:
        if framing == 'length':
            connection.ask(b'/p', b'POST', b'Content-Length: %d' % len(body), body=body)
        else:
            chunk = b'%x\r\n%b\r\n' % (len(body), body) if body else b''
            connection.ask(b'/p', b'POST', b'Transfer-Encoding: chunked', body=chunk + b'0\r\n\r\n')
    heads, arrived = zip(*(request.split(b'\r\n\r\n', 1) for request in recorder.requests), strict=True)
    assert list(arrived) == wanted
    assert all(b'content-length: %d' % len(body) in head for head, body in zip(heads, wanted, strict=True))
    assert not any(b'transfer-encoding' in head.lower() for head in heads)
