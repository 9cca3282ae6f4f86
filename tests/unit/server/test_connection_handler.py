# SPDX-License-Identifier: Apache-2.0
"""Connections over socket pairs. ``tests/e2e`` has whole workers, ``tests/wire`` malformed requests."""

import _socket
import errno
import logging
import re
import socket
import time

import gevent
import gevent.event
import pytest
from gunicorn.config import Config

from metadata_wsgi import limits
from metadata_wsgi.cli.log_output import RequestIdRecord
from metadata_wsgi.net.queue_wait import queue_wait_s
from metadata_wsgi.pipeline import environ_keys, request_id
from metadata_wsgi.server import connection_handler
from metadata_wsgi.server.acceptor import GreenletPool
from metadata_wsgi.server.connection_limits import ConnectionLimits

GET = b'GET /%s HTTP/1.1\r\nHost: x\r\n\r\n'
OK = [('Content-Length', '0')]
FAILED = environ_keys.Failure(503, 'the lookup failed')
CUT_OFF = environ_keys.Failure(0, 'the response was cut off: see the log')
ID = 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'


class SocketPairServer:
    """Serves over socket pairs. ``requested``: paths and body lengths, in the order of the application's calls."""

    def __init__(self, **connection_limits):
        self.requested = []
        self.is_stopping = self.has_waiting_connections = False
        self.may_respond = gevent.event.Event()
        self.limits = ConnectionLimits(**{'per_address': 10, 'total': 100, **connection_limits})
        self.handler = connection_handler.ConnectionHandler(
            self.application, Config(), self.limits, any_destination=True, is_stopping=lambda: self.is_stopping,
            has_waiting_connections=lambda: self.has_waiting_connections,
            on_failure=lambda environ: self.failures.append(environ[environ_keys.FAILURE]),
        )  # fmt: skip
        self.pool = GreenletPool(100, on_full=self.handler.close_longest_idle)
        self.clients = []
        self.failures = []

    def close(self):
        for client in self.clients:
            client.close()

    def application(self, environ, start_response):
        self.requested.append(environ['PATH_INFO'])
        if environ['PATH_INFO'].startswith('/failed'):
            environ[environ_keys.FAILURE] = FAILED
        if environ['PATH_INFO'].endswith('-gone'):
            self.may_respond.wait()
        if environ['PATH_INFO'].endswith('broken'):
            start_response('200 OK', [('Content-Length', '9')])
            return iter_and_fail()
        if environ['PATH_INFO'] == '/no-status':
            return [b'x']
        if environ['PATH_INFO'] == '/os-error':
            start_response('200 OK', OK)
            return iter_and_fail(ConnectionResetError(errno.ECONNRESET, 'connection of the application'))
        if environ['PATH_INFO'] == '/begin':
            self.begun_id = request_id.begin(environ)
        if environ['PATH_INFO'] == '/wait':
            self.may_respond.wait()
        if environ['PATH_INFO'] == '/refuse':
            start_response('413 Payload Too Large', OK)
            return []
        if environ['REQUEST_METHOD'] == 'POST':
            self.requested.append(len(environ['wsgi.input'].read()))
        self.received_at_s = environ[environ_keys.RECEIVED_AT_S]
        self.client_has_closed = environ.get(environ_keys.CLIENT_HAS_CLOSED)
        start_response('200 OK', OK)
        return []

    def connect(self, data=b'', address=('10.1.1.2', 1)):
        """A client that has sent ``data``; its connection is handled until the handler's first wait."""
        server_end, client = self.pair()
        client.sendall(data)
        self.handle(server_end, address)
        return client

    def connect_proxy(self, data=b''):
        """Like ``connect``, over a unix socket: the peer has no address."""
        return self.connect(data, '')

    def pair(self):
        server_end, client = socket.socketpair()
        client.settimeout(5)
        self.clients.append(client)
        return server_end, client

    def tcp_pair(self):
        with socket.create_server(('127.0.0.1', 0)) as listener:
            client = socket.create_connection(listener.getsockname(), timeout=5)
            self.clients.append(client)
            return listener.accept()[0], client

    def handle(self, server_end, address=('10.1.1.2', 1)):
        sock = _socket.socket(server_end.family, server_end.type, server_end.proto, server_end.detach())

        def handle(sock, address):
            self.handler.handle(sock, address, 'router-a', {})

        gevent.get_hub().loop.run_callback(self.pool.spawn, handle, sock, address)
        gevent.sleep(0)


def iter_and_fail(error=None):
    yield b'half'
    raise error or RuntimeError('unforeseen')


def wait_until(condition):
    with gevent.Timeout(60):
        while not condition():
            gevent.sleep(0.001)


@pytest.fixture
def make_server():
    made = []

    def make(**kwargs):
        made.append(SocketPairServer(**kwargs))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(make_server):
    return make_server()


def test_a_pipelining_client_yields_to_other_connections(server):
    pipelining = server.connect(b''.join(GET % b'pipelined' for _ in range(100)))
    other = server.connect(GET % b'other')
    wait_until(lambda: server.requested.count('/pipelined') == 100)
    assert server.requested.index('/other') < 50
    assert pipelining.recv(1 << 20).count(b'200 OK') == 100
    assert other.recv(1000).startswith(b'HTTP/1.1 200 OK')


def test_a_body_in_tiny_chunks_yields_to_other_connections(server):
    """Each chunk is work, and the next one is always there already: recv() never waits."""
    server_end, client = server.pair()
    chunks = b'1\r\nx\r\n' * 10_000 + b'0\r\n\r\n'
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    client.sendall(b'POST /chunks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n' + chunks)
    server.handle(server_end)
    server.connect(GET % b'other')
    wait_until(lambda: 10_000 in server.requested)
    assert server.requested == ['/chunks', '/other', 10_000]


def test_a_request_on_an_idle_keepalive_connection_that_came_before_its_close_gets_a_response(server):
    """A POST would have its effect, and the client would not know."""
    client = server.connect(GET % b'x')
    wait_until(lambda: server.requested == ['/x'])
    assert b'keep-alive' in client.recv(1000)
    client.sendall(GET % b'last')
    server.is_stopping = True
    server.handler.close_idle()
    wait_until(lambda: len(server.pool) == 0)
    assert server.requested == ['/x', '/last']
    assert b'Connection: close' in client.recv(1000)


def test_a_graceful_stop_closes_idle_keepalive_connections_and_finishes_requests_in_progress(server):
    kept_alive, new = server.connect(GET % b'x'), server.connect(b'GET /half')
    wait_until(lambda: server.requested == ['/x'])
    server.is_stopping = True
    server.handler.close_idle()
    wait_until(lambda: len(server.pool) == 1)
    new.sendall(b' HTTP/1.1\r\n\r\n')
    wait_until(lambda: len(server.pool) == 0)
    assert b'keep-alive' in kept_alive.recv(1000)
    assert kept_alive.recv(1000) == b''
    assert b'Connection: close' in new.recv(1000)
    assert server.requested == ['/x', '/half']


def test_an_idle_connection_is_closed_in_favour_of_a_new_one(make_server):
    server = make_server(total=2)
    clients = [server.connect(b'GET /half', (f'10.1.1.{number}', 1)) for number in (2, 3)]
    wait_until(lambda: len(server.pool) == 2)
    server.connect(GET % b'x', ('10.1.1.4', 1))
    wait_until(lambda: server.requested == ['/x'])
    clients[1].sendall(b' HTTP/1.1\r\n\r\n')
    wait_until(lambda: server.requested == ['/x', '/half'])
    assert clients[0].recv(1000) == b''


def test_a_closed_connection_is_no_longer_counted(server):
    for data in (b'', GET % b'x', b'\0\r\n\r\n', GET % b'broken'):
        with server.connect(data, ('10.1.1.2', 1)):
            pass
        wait_until(lambda: len(server.pool) == 0)
    assert (len(server.limits), server.limits._idle, server.handler._idle) == (0, {}, {})


def test_a_response_that_fails_half_way_closes_the_connection(server, caplog):
    client = server.connect((GET % b'broken') + GET % b'x')
    wait_until(lambda: len(server.pool) == 0)
    received = client.recv(1000)
    assert (received.endswith(b'half'), client.recv(1000)) == (True, b'')
    assert 'The response was cut off' in caplog.text
    assert server.requested == ['/broken']


def test_an_application_without_start_response_sends_no_response(server, caplog):
    client = server.connect(GET % b'no-status')
    wait_until(lambda: len(server.pool) == 0)
    assert client.recv(1000) == b''
    assert 'start_response was not called' in caplog.text


@pytest.mark.parametrize(('name', 'seconds'), [('HEADER_TIMEOUT_S', 0.02), ('READ_WRITE_TIMEOUT_S', 0.02)])
def test_a_timeout_ends_an_incomplete_header(server, name, seconds, monkeypatch):
    monkeypatch.setattr(limits, name, seconds)
    client = server.connect(b'GET /')
    wait_until(lambda: len(server.pool) == 0)
    assert client.recv(1000) == b''


def test_a_timeout_ends_an_incomplete_header_on_a_keepalive_connection(server, monkeypatch):
    """It starts with the first byte; the time between two requests is another one."""
    client = server.connect(GET % b'x')
    wait_until(lambda: server.requested == ['/x'])
    monkeypatch.setattr(limits, 'HEADER_TIMEOUT_S', 0.02)
    assert b'200 OK' in client.recv(1000)
    client.sendall(b'GET /')
    wait_until(lambda: len(server.pool) == 0)
    assert client.recv(1000) == b''


def test_the_timeout_of_an_idle_keepalive_connection_is_not_that_of_a_header(server, monkeypatch):
    monkeypatch.setattr(limits, 'HEADER_TIMEOUT_S', 0.02)
    client = server.connect(GET % b'x')
    wait_until(lambda: server.handler._idle)
    server.connect(b'GET /')
    wait_until(lambda: len(server.pool) == 1)  # the header's timeout is over, and only the idle connection is left
    client.sendall(GET % b'y')
    wait_until(lambda: server.requested == ['/x', '/y'])


def test_a_full_worker_closes_the_longest_idle_keepalive_connection_of_a_namespace_proxy(server):
    """Idle connections of some proxies must not keep the requests of others out."""
    proxies = [server.connect_proxy(GET % name) for name in (b'a', b'b')]
    wait_until(lambda: len(server.handler._idle) == 2)
    server.pool._limit = 2

    class PausedAcceptor:
        resumed = False

        def resume(self):
            self.resumed = True

    paused = PausedAcceptor()
    assert server.pool.is_full
    server.pool.resume_when_free(paused)
    wait_until(lambda: paused.resumed)
    assert [b'200 OK' in proxy.recv(1000) for proxy in proxies] == [True, True]
    assert proxies[0].recv(1000) == b''
    assert len(server.pool) == 1


def test_a_keepalive_connection_of_a_full_worker_with_waiting_connections_is_closed_after_its_response(server):
    """When the worker became full no connection was idle that could be closed."""
    server.has_waiting_connections = True
    client = server.connect_proxy(GET % b'x')
    wait_until(lambda: len(server.pool) == 0)
    assert b'200 OK' in client.recv(1000)
    assert client.recv(1000) == b''


def test_a_request_without_a_concurrency_slot_in_time_is_answered_503(make_server, monkeypatch):
    server = make_server(per_address=100)
    monkeypatch.setattr(limits, 'REQUEST_TIMEOUT_S', 0.05)
    for _ in range(limits.MAX_CONCURRENT_PER_CLIENT):
        server.connect(GET % b'wait')
    late = server.connect(GET % b'late')
    other = server.connect(GET % b'other', ('10.1.1.3', 1))
    wait_until(lambda: '/other' in server.requested and len(server.pool) == limits.MAX_CONCURRENT_PER_CLIENT + 1)
    response = late.recv(1000)
    assert response.startswith(b'HTTP/1.1 503 Service Unavailable\r\n')
    assert b'Retry-After: 1\r\n' in response
    assert b'200 OK' in other.recv(1000)
    assert '/late' not in server.requested
    server.may_respond.set()


def test_wait_for_a_concurrency_slot_ends_at_the_deadline_that_includes_the_accept_queue(make_server, monkeypatch):
    server = make_server(per_address=100)
    for _ in range(limits.MAX_CONCURRENT_PER_CLIENT):
        server.connect(GET % b'wait')
    wait_until(lambda: len(server.requested) == limits.MAX_CONCURRENT_PER_CLIENT)
    monkeypatch.setattr(limits, 'REQUEST_TIMEOUT_S', 3600.0)
    monkeypatch.setattr(limits, 'MIN_TIME_AFTER_QUEUE_S', 0.05)
    monkeypatch.setattr(connection_handler, 'queue_wait_s', lambda connection: 3600.0)
    client = server.connect(GET % b'late')
    wait_until(lambda: server.failures)
    assert client.recv(1000).startswith(b'HTTP/1.1 503 ')
    server.may_respond.set()


def test_the_wait_for_a_concurrency_slot_counts_for_the_requests_deadline(make_server):
    server = make_server(per_address=100)
    for _ in range(limits.MAX_CONCURRENT_PER_CLIENT):
        server.connect(GET % b'wait')
    wait_until(lambda: len(server.requested) == limits.MAX_CONCURRENT_PER_CLIENT)
    client = server.connect(GET % b'late')
    released_at_s = time.monotonic()
    server.may_respond.set()
    wait_until(lambda: '/late' in server.requested)
    assert b'200 OK' in client.recv(1000)
    assert server.received_at_s < released_at_s


def test_a_slow_body_times_out_at_the_requests_deadline(server, monkeypatch, caplog):
    monkeypatch.setattr(limits, 'REQUEST_TIMEOUT_S', 0.02)
    client = server.connect(b'POST /slow HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc')
    wait_until(lambda: len(server.pool) == 0)
    assert client.recv(1000) == b''
    assert 'TimeoutError: the request body did not arrive in time' in caplog.text


def test_100_continue_is_sent_when_the_application_reads_the_body(server):
    post = b'POST /%s HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n'
    reading, refusing = server.connect(post % b'read'), server.connect(post % b'refuse')
    wait_until(lambda: server.requested == ['/read', '/refuse'])
    assert reading.recv(1000) == b'HTTP/1.1 100 Continue\r\n\r\n'
    reading.sendall(b'hi')
    wait_until(lambda: server.requested == ['/read', '/refuse', 2])
    assert b'200 OK' in reading.recv(1000)
    assert refusing.recv(1000).startswith(b'HTTP/1.1 413 ')


def test_an_os_error_of_the_application_is_logged(server, caplog):
    """It is not the client that closed its connection."""
    server.connect(GET % b'os-error')
    wait_until(lambda: len(server.pool) == 0)
    assert 'connection of the application' in caplog.text


def test_a_disconnect_of_the_client_is_not_logged(server, caplog):
    client = server.connect(GET % b'wait')
    client.close()
    server.may_respond.set()
    wait_until(lambda: len(server.pool) == 0)
    assert caplog.records == []


@pytest.mark.parametrize(
    'data', [b'\0\r\n\r\n', GET % b'broken', GET % b'no-status'], ids=['malformed', 'broken', 'status']
)
def test_log_lines_that_a_client_causes_are_throttled(server, caplog, data):
    caplog.set_level('INFO')
    for _ in range(3):
        server.connect(data)
        wait_until(lambda: len(server.pool) == 0)
    assert len(caplog.records) == 1


@pytest.mark.parametrize('data', [b'GET / HTTP/1.0\n\n', b'GET / HTTP/1.1\r\nHost: x\n\n'])
def test_the_log_gives_the_reason_of_a_400_for_a_bare_lf(server, caplog, data):
    caplog.set_level('DEBUG')
    client = server.connect(data)
    wait_until(lambda: len(server.pool) == 0)
    assert client.recv(1000).startswith(b'HTTP/1.1 400 ')
    assert 'bare lf as line terminator' in caplog.text.lower()
    assert '10.1.1.2' in caplog.text


def test_the_deadline_counts_the_time_in_the_accept_queue(server):
    """A client that connected while no worker accepted has waited already."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server.clients.append(client)
        client.sendall(GET % b'')
        server_end, _ = listener.accept()
        while queue_wait_s(server_end) < 0.1:
            gevent.sleep(0.01)
        before_s = time.monotonic()
        server.handle(server_end, ('127.0.0.1', 1))
        assert client.recv(100).startswith(b'HTTP/1.1 200')
        assert server.received_at_s <= before_s - 0.09


def test_a_long_time_in_the_accept_queue_leaves_time_for_an_attempt(server, monkeypatch):
    monkeypatch.setattr(connection_handler, 'queue_wait_s', lambda connection: 3600.0)
    before_s = time.monotonic()
    client = server.connect(GET % b'')
    assert client.recv(100).startswith(b'HTTP/1.1 200')
    deadline_s = server.received_at_s + limits.REQUEST_TIMEOUT_S
    assert before_s <= deadline_s - limits.MIN_TIME_AFTER_QUEUE_S <= time.monotonic()


def test_only_the_first_request_of_a_connection_was_in_the_accept_queue(server, monkeypatch):
    monkeypatch.setattr(connection_handler, 'queue_wait_s', lambda connection: 3.0)
    client = server.connect(GET % b'')
    assert client.recv(100).startswith(b'HTTP/1.1 200')
    first_s = server.received_at_s
    client.sendall(GET % b'')
    wait_until(lambda: server.received_at_s != first_s)
    assert server.received_at_s - first_s >= 3.0


@pytest.fixture
def logged_ids(caplog):
    """A function: the request ids of the log lines since the last call, '' for a line without one."""
    caplog.set_level('DEBUG')
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(RequestIdRecord)

    def ids():
        found = [getattr(record, 'request_id', '') for record in caplog.records]
        caplog.clear()
        return found

    yield ids
    logging.setLogRecordFactory(factory)


def id_in(response):
    """The request id in the header of a response."""
    return re.search(rb'\r\nX-Openstack-Request-Id: (req-[0-9a-f-]{36})\r\n', response)[1].decode()


MALFORMED = {
    400: b'GET / HTTP/1.1\r\nHost: x\n\n',
    414: b'GET /' + b'a' * 9000 + b' HTTP/1.1\r\n\r\n',
    431: b'GET / HTTP/1.1\r\nLong: ' + b'a' * 20000 + b'\r\n\r\n',
    501: b'POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n',
}


@pytest.mark.parametrize(('status', 'data'), MALFORMED.items(), ids=map(str, MALFORMED))
def test_the_response_and_the_log_line_of_a_malformed_request_have_a_request_id(server, logged_ids, status, data):
    ids = []
    for _ in range(2):
        client = server.connect(data)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: len(server.pool) == 0)
        response = client.recv(1000)
        assert response.startswith(f'HTTP/1.1 {status} '.encode())
        ids.append(id_in(response))
        assert logged_ids() == ids[-1:]
        assert server.failures.pop().status == status
    assert ids[0] != ids[1]


def test_a_malformed_request_on_a_keepalive_connection_has_a_request_id_of_its_own(server, logged_ids):
    client = server.connect(GET % b'begin')
    wait_until(lambda: server.handler._idle)
    assert b'200 OK' in client.recv(1000)
    client.sendall(MALFORMED[400])
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: len(server.pool) == 0)
    id_ = id_in(client.recv(1000))
    assert logged_ids() == [id_]
    assert id_ != server.begun_id


def test_a_malformed_body_has_the_request_id_of_its_request(server, logged_ids):
    client = server.connect(b'POST /begin HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno-size\r\n')
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: len(server.pool) == 0)
    response = client.recv(1000)
    assert response.startswith(b'HTTP/1.1 400 ')
    assert logged_ids() == [id_in(response)] == [server.begun_id]
    assert [failure.status for failure in server.failures] == [400]


@pytest.mark.parametrize('given', ['', f'X-Openstack-Request-Id: {ID}\r\n'], ids=['made', 'given'])
def test_the_503_for_a_missing_concurrency_slot_has_a_request_id(make_server, logged_ids, monkeypatch, given):
    server = make_server(per_address=100)
    monkeypatch.setattr(limits, 'REQUEST_TIMEOUT_S', 0.05)
    for _ in range(limits.MAX_CONCURRENT_PER_CLIENT):
        server.connect(GET % b'wait')
    late = server.connect(f'GET /late HTTP/1.1\r\n{given}\r\n'.encode())
    late.shutdown(socket.SHUT_WR)
    wait_until(lambda: len(server.pool) == limits.MAX_CONCURRENT_PER_CLIENT)
    response = late.recv(1000)
    assert response.startswith(b'HTTP/1.1 503 ')
    assert logged_ids() == [id_in(response)]
    assert not given or id_in(response) == ID
    server.may_respond.set()


POST = b'POST /password HTTP/1.1\r\nContent-Length: %d\r\n\r\n'


@pytest.mark.parametrize(
    'data', [GET % b'x', POST % 6 + b'secret', POST % 100_000 + bytes(100_000)], ids=['GET', 'POST', 'unread body']
)
def test_request_is_dropped_if_the_namespace_proxy_disconnected_while_the_request_waited(server, data):
    """In the backlog of a restarting agent. The client has got a 503, and repeats the request."""
    server_end, proxy = server.pair()
    proxy.sendall(data)
    proxy.close()
    server.handle(server_end, PROXY)
    wait_until(lambda: len(server.pool) == 0)
    assert server.requested == []


def test_request_on_a_keepalive_connection_is_dropped_if_the_namespace_proxy_disconnected(server):
    proxy = server.connect_proxy(GET % b'first')
    assert b'200 OK' in proxy.recv(1000)
    proxy.sendall(GET % b'second')
    proxy.close()
    wait_until(lambda: len(server.pool) == 0)
    assert server.requested == ['/first']


def test_application_can_check_whether_the_namespace_proxy_has_disconnected(server):
    proxy = server.connect_proxy(GET % b'x')
    assert b'200 OK' in proxy.recv(1000)
    assert not server.client_has_closed()
    server.connect(GET % b'x')
    wait_until(lambda: server.requested == ['/x', '/x'])
    assert server.client_has_closed is None


def test_request_gets_a_response_if_the_peer_only_closed_its_sending_direction(server):
    """socat does so at the end of its input."""
    server_end, proxy = server.pair()
    proxy.sendall(GET % b'x')
    proxy.shutdown(socket.SHUT_WR)
    server.handle(server_end, PROXY)
    assert b'200 OK' in proxy.recv(1000)


INSTANCE, PROXY = ('10.1.1.2', 1), ''
REMAINING = 'X-Metadata-Remaining-Ms: 9000'


@pytest.mark.parametrize(
    ('path', 'address', 'header', 'recorded'),
    [
        ('/failed', INSTANCE, '', [FAILED]),
        ('/failed', PROXY, REMAINING, [FAILED]),
        # One request, one failure, although two things went wrong.
        ('/failed-broken', INSTANCE, '', [FAILED]),
        ('/broken', INSTANCE, REMAINING, [CUT_OFF]),
        ('/failed-gone', INSTANCE, REMAINING, [FAILED]),
        # The namespace proxy did not get the whole response, and records it.
        ('/failed-broken', PROXY, REMAINING, []),
        ('/broken', PROXY, REMAINING, []),
        ('/failed-gone', PROXY, REMAINING, []),
        # haproxy records nothing.
        ('/broken', PROXY, 'X-Forwarded-For: 10.1.1.2', [CUT_OFF]),
        ('/failed-gone', PROXY, 'X-Forwarded-For: 10.1.1.2', [FAILED]),
    ],
)
def test_each_failure_is_recorded_by_one_program(server, path, address, header, recorded):
    server_end, client = server.tcp_pair() if address else server.pair()
    client.sendall(f'GET {path} HTTP/1.1\r\n{header}\r\n\r\n'.encode())
    server.handle(server_end, address)
    wait_until(lambda: server.requested == [path])
    if path.endswith('gone'):
        client.close()
        server.may_respond.set()
    else:
        client.shutdown(socket.SHUT_WR)
    wait_until(lambda: len(server.pool) == 0)
    assert server.failures == recorded
