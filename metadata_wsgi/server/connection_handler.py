# SPDX-License-Identifier: Apache-2.0
"""Handles one connection: checks its destination and the limits, then reads requests and sends responses.

- A connection that was not made to the metadata address is closed (``net.original_dst``).
- The number of connections of each client is limited (``connection_limits``). If a client at its limit opens another
  connection, the client's connection that has been idle longest is closed. If the worker is full, the keep-alive
  connection that has been idle longest is closed, even if its peer is a namespace proxy.
- Timeouts (``limits``): HEADER_TIMEOUT_S for a header, BODY_TIMEOUT_S for a body, READ_WRITE_TIMEOUT_S for a pause
  inside a response, KEEPALIVE_TIMEOUT_S between two requests. A timeout ends only its own connection, so a slow client
  does not delay others. For comparison: Neutron's haproxy has one connection limit for the whole router. There 1,100
  half-sent requests of one client delayed the other clients by 29 s.
- The pipeline processes at most MAX_CONCURRENT_PER_CLIENT requests of a client at a time (``concurrency_limit``). If a
  request gets no slot within REQUEST_TIMEOUT_S, the response is 503 with Retry-After. The wait for a slot and the
  deadline of a request both start at its complete header (``environ_keys.RECEIVED_AT_S``). For the first request of a
  connection they start when the connection began to wait to be accepted (``net.queue_wait``).
- A request over a unix socket is dropped if the namespace proxy has closed the connection while the request waited (in
  the backlog of a restarting or busy agent). The instance has got 503, and a POST must not have an effect after it.
- A busy connection yields to the other connections: after REQUESTS_PER_YIELD pipelined requests, and before each recv()
  of a body.
- A malformed request gets a constant error response (400, 414, 431, 501), and the connection is closed. The connection
  is also closed if the application did not read the whole body. gunicorn would read the rest of the body as long as the
  client sends.
- ``100 Continue`` is sent when the application first reads the body. So if the application rejects a request without
  reading the body, the client need not send the body.
- Log lines that a client can cause are throttled. In each LOG_INTERVAL_S one line of each kind is logged at its own
  level, further lines at DEBUG.

``request_parser`` reads requests, ``response_writer`` writes responses.
"""

from __future__ import annotations

import _socket
import errno
import logging
import socket
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import gevent
from gunicorn.http import errors

from metadata_wsgi import instruments, limits
from metadata_wsgi.http import header_names
from metadata_wsgi.http.raw_socket import RawSocket
from metadata_wsgi.net import original_dst
from metadata_wsgi.net.addresses import with_interface
from metadata_wsgi.net.queue_wait import queue_wait_s
from metadata_wsgi.pipeline import environ_keys, request_id
from metadata_wsgi.server.concurrency_limit import PerClientConcurrency
from metadata_wsgi.server.connection_limits import ConnectionLimits
from metadata_wsgi.server.parse_errors import drain, send_error
from metadata_wsgi.server.progress import Progress
from metadata_wsgi.server.request_parser import (
    Body,
    ParsedRequest,
    RequestStream,
    parse_repeated,
    parse_simple,
)
from metadata_wsgi.server.response_writer import ClientConnectionError, ResponseWriter
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)


DISCONNECT_ERRNOS = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF})
"""Errors that occur when the client closes the connection. They are not logged, because the server is not at fault."""

_REMAINING_KEY = header_names.environ_key(header_names.REMAINING_MS)


class ConnectionHandler:
    """Serves ``application`` on connections.

    ``settings`` are gunicorn's. With ``any_destination``, connections to other addresses than the metadata address are
    served too. When ``is_stopping()`` returns True, a connection is closed after the request in progress.
    ``has_waiting_connections()`` returns whether new connections wait because the worker is full. While it returns
    True, whenever a connection becomes idle, the longest idle connection is closed. ``progress`` gets the start and the
    end of each call of the application. ``on_failure`` is called once for each failed request, with an environ that has
    the key FAILURE.
    """

    def __init__(
        self,
        application: WSGIApplication,
        settings: Any,
        connection_limits: ConnectionLimits,
        *,
        any_destination: bool,
        is_stopping: Callable[[], bool],
        has_waiting_connections: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
        on_failure: Callable[[WSGIEnvironment], object] = lambda environ: None,
    ) -> None:
        self._application = application
        self._settings = settings
        self._limits = connection_limits
        self._any_destination = any_destination
        self._is_stopping = is_stopping
        self._has_waiting_connections = has_waiting_connections
        self._progress = progress or Progress()
        self._on_failure = on_failure
        self._concurrency = PerClientConcurrency(limits.MAX_CONCURRENT_PER_CLIENT)
        # Keep-alive connections between two requests. The first one has been idle longest.
        self._idle: dict[RawSocket, None] = {}
        self._wrong_destination_log = Throttle(limits.LOG_INTERVAL_S)
        self._malformed_log = Throttle(limits.LOG_INTERVAL_S)
        self._connection_error_log = Throttle(limits.LOG_INTERVAL_S)
        self._application_error_log = Throttle(limits.LOG_INTERVAL_S)
        # If both settings are empty, the parser does not use the peer's address.
        self._peer_may_set_headers = bool(settings.secure_scheme_headers or settings.forwarder_headers)

    def close_idle(self) -> None:
        """Close the idle keep-alive connections. A request that has already arrived gets its response."""
        while self._idle:
            self.close_longest_idle()

    def close_longest_idle(self) -> None:
        """Close the keep-alive connection that has been idle longest, if there is one."""
        if not self._idle:
            return
        connection = next(iter(self._idle))
        del self._idle[connection]
        try:
            connection.shutdown(0)
        except OSError as error:
            LOG.debug('An idle connection was closed by the client: %s', error)

    def handle(self, sock: _socket.socket, address: Any, namespace_id: Hashable, environ: WSGIEnvironment) -> None:
        """Handle one connection until its end.

        ``address`` is the peer's address, in the form of accept(). ``environ`` has the keys that are the same for all
        requests of the listener.
        """
        # The peer on a unix socket is a namespace proxy. It has no address, and it sends requests of many clients.
        client = address[0] if isinstance(address, tuple) else ''
        if client and not self._is_redirected(sock, client):
            sock.close()
            return
        groups = self._limits.admit(namespace_id, _with_zone(address)) if client else ()
        if groups is None:
            instruments.REFUSED.add('connection_limit')
            LOG.debug('%s has reached its connection limit; its new connection was closed', client)
            sock.close()
            return
        address_text = with_interface(sock.fileno(), address) if client else ''
        connection = RawSocket(sock)
        if groups:
            connection.on_block = lambda: self._limits.mark_idle(connection, groups)
        requests = RequestStream(
            self._settings,
            connection,
            address if self._peer_may_set_headers else '',
            parse_repeated if client else parse_simple,
        )
        environ = {**environ, 'REMOTE_ADDR': address_text, 'gunicorn.socket': connection}
        if not client:
            environ[environ_keys.CLIENT_HAS_CLOSED] = connection.peer_has_closed
        try:
            self._serve_requests(requests, connection, groups[:1], environ)
        except (OSError, ClientConnectionError) as error:
            self._log_connection_error(client, error)
        finally:
            self._limits.mark_active(connection)
            self._limits.release(groups)
            connection.close()

    def _log_connection_error(self, client: str, error: Exception) -> None:
        cause = error.__cause__ if isinstance(error, ClientConnectionError) else error
        if isinstance(cause, TimeoutError) or (isinstance(cause, OSError) and cause.errno in DISCONNECT_ERRNOS):
            return
        level = logging.WARNING if self._connection_error_log.allow() else logging.DEBUG
        LOG.log(level, 'The connection of %s failed: %s', client or 'a namespace proxy', error)

    def _is_redirected(self, sock: _socket.socket, client: str) -> bool:
        try:
            if self._any_destination or original_dst.targets_metadata_address(sock, client):
                return True
        except OSError as error:
            LOG.debug('The client closed the connection before it was handled: %s', error)
            return False
        instruments.REFUSED.add('destination')
        if self._wrong_destination_log.allow():
            LOG.warning(
                'Refused a connection of %s that was not made to the metadata address: are the rules of this router '
                'missing?',
                client,
            )
        return False

    def _serve_requests(
        self,
        requests: RequestStream,
        connection: RawSocket,
        client_key: tuple[Hashable, ...],
        environ: WSGIEnvironment,
    ) -> None:
        served = 0
        while True:
            # The next request has no id yet: its log lines must not contain the id of the request before it.
            request_id.CURRENT.set('')
            try:
                request = self._next_request(requests, connection, is_first=not served)
            except errors.ParseException as error:
                status = self._refuse_malformed(connection, environ['REMOTE_ADDR'], error)
                reason = f'a request that cannot be parsed ({type(error).__name__})'
                self._on_failure({**environ, environ_keys.FAILURE: environ_keys.Failure(status, reason)})
                return
            if request is None:
                return
            received_at_s = time.monotonic() - (0.0 if served else _waited_s(connection))
            request_environ = {**environ, **request.fields, environ_keys.RECEIVED_AT_S: received_at_s}
            if not self._with_concurrency_slot(request, connection, client_key, request_environ):
                return
            if self._is_stopping():
                return
            served += 1
            if served % limits.REQUESTS_PER_YIELD == 0:
                gevent.sleep(0)

    def _refuse_malformed(self, connection: RawSocket, client: str, error: Exception) -> int:
        """Log the error and send the error response. Returns its status."""
        # The id of the client is not taken, because its header could not be parsed.
        id_ = request_id.CURRENT.get() or request_id.begin({})
        instruments.REFUSED.add('malformed')
        level = logging.INFO if self._malformed_log.allow() else logging.DEBUG
        # repr() and a limit, because the text of gunicorn's exceptions may contain bytes from the client.
        LOG.log(level, 'Refused a malformed request of %s: %.300r', client or 'a namespace proxy', error)
        return send_error(connection, error, id_)

    def _next_request(self, requests: RequestStream, connection: RawSocket, *, is_first: bool) -> ParsedRequest | None:
        """Read the header of the next request. Returns None at the end of the connection.

        Raises TimeoutError for a late header.
        """
        try:
            if is_first:
                connection.settimeout(limits.READ_WRITE_TIMEOUT_S)
                connection.set_deadline(limits.HEADER_TIMEOUT_S)
                has_data = requests.wait_for_data()
            else:
                self._idle[connection] = None
                if self._has_waiting_connections():
                    self.close_longest_idle()
                connection.settimeout(limits.KEEPALIVE_TIMEOUT_S)
                has_data = requests.wait_for_data()
                self._idle.pop(connection, None)
                connection.settimeout(limits.READ_WRITE_TIMEOUT_S)
                connection.set_deadline(limits.HEADER_TIMEOUT_S)
            return requests.next() if has_data else None
        finally:
            connection.set_deadline(None)
            self._limits.mark_active(connection)
            self._idle.pop(connection, None)

    def _with_concurrency_slot(
        self,
        request: ParsedRequest,
        connection: RawSocket,
        client_key: tuple[Hashable, ...],
        environ: WSGIEnvironment,
    ) -> bool:
        """Wait for a concurrency slot of the client, then respond. Returns whether the connection may stay open.

        ``client_key`` is empty for a namespace proxy, because its requests are not limited.
        """
        if not client_key:
            if connection.peer_has_closed():
                LOG.debug('A request was dropped: the namespace proxy has closed the connection while it waited')
                return False
            return self._respond(request, connection, environ)
        remaining_s = environ[environ_keys.RECEIVED_AT_S] + limits.REQUEST_TIMEOUT_S - time.monotonic()
        if not self._concurrency.acquire(client_key[0], remaining_s):
            instruments.REFUSED.add('concurrency')
            id_ = request_id.begin(environ)
            LOG.debug('%s has reached its limit of concurrent requests; a request got 503', environ['REMOTE_ADDR'])
            reason = 'its other requests took all of its concurrency slots'
            self._on_failure({**environ, environ_keys.FAILURE: environ_keys.Failure(503, reason)})
            self._respond_unavailable(request, connection, id_)
            return False
        try:
            return self._respond(request, connection, environ)
        finally:
            self._concurrency.release(client_key[0])

    def _respond_unavailable(self, request: ParsedRequest, connection: RawSocket, id_: str) -> None:
        text = b'Too many requests of this address wait.\n'
        response = ResponseWriter(request, connection)
        response.force_close()
        response.start_response(
            '503 Service Unavailable',
            [
                (request_id.RESPONSE_HEADER, id_),
                ('Content-Type', 'text/plain'),
                ('Content-Length', str(len(text))),
                ('Retry-After', '1'),
            ],
        )
        response.write(text)
        response.close()
        drain(connection)

    def _respond(self, request: ParsedRequest, connection: RawSocket, environ: WSGIEnvironment) -> bool:
        """Call the application and send its response. Returns whether the connection may stay open."""
        response = ResponseWriter(request, connection)
        if request.expects_body:
            environ['wsgi.input'] = self._body(request, connection, response, environ[environ_keys.RECEIVED_AT_S])
        if self._is_stopping():
            response.force_close()
        try:
            self._progress.start(environ)
            try:
                body = self._application(environ, response.start_response)
            finally:
                self._progress.end(environ)
            try:
                for piece in body:
                    response.write(piece)
                    self._limits.mark_active(connection)
                response.close()
            finally:
                if hasattr(body, 'close'):
                    body.close()
        except ClientConnectionError:
            self._record_failure(request, connection, environ, is_sent=False)
            raise
        except errors.ParseException as error:
            # A malformed chunked body is detected only when the application reads it.
            status = 0
            if not response.headers_sent:
                status = self._refuse_malformed(connection, environ['REMOTE_ADDR'], error)
            reason = f'a request body that cannot be parsed ({type(error).__name__})'
            environ[environ_keys.FAILURE] = environ_keys.Failure(status, reason)
            self._record_failure(request, connection, environ, is_sent=bool(status))
            return False
        except Exception:
            # The closed connection shows the client that the response is incomplete.
            level = logging.ERROR if self._application_error_log.allow() else logging.DEBUG
            LOG.log(level, 'The response was cut off', exc_info=True)
            environ.setdefault(environ_keys.FAILURE, environ_keys.Failure(0, 'the response was cut off: see the log'))
            self._record_failure(request, connection, environ, is_sent=False)
            return False
        self._record_failure(request, connection, environ, is_sent=True)
        if request.has_unread_body:
            drain(connection)
            return False
        return not response.should_close()

    def _record_failure(
        self, request: ParsedRequest, connection: RawSocket, environ: WSGIEnvironment, *, is_sent: bool
    ) -> None:
        """Record the FAILURE in ``environ``, if there is one, unless the namespace proxy records it.

        The namespace proxy records a failure if it did not get the whole response: the connection broke, or it no
        longer waited.
        """
        if environ_keys.FAILURE not in environ:
            return
        # An instance may send the header too, but not over a unix socket. haproxy does not send it and records nothing.
        is_namespace_proxy = connection.family == socket.AF_UNIX and _REMAINING_KEY in request.fields
        if is_sent or not is_namespace_proxy:
            self._on_failure(environ)

    def _body(
        self, request: ParsedRequest, connection: RawSocket, response: ResponseWriter, received_at_s: float
    ) -> Body:
        def send_continue() -> None:
            if request.expects_continue and not response.headers_sent:
                connection.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')

        return Body(
            request.body,
            deadline_s=received_at_s + limits.REQUEST_TIMEOUT_S,
            on_first_read=send_continue,
            on_progress=lambda: self._limits.mark_active(connection),
        )


def _waited_s(connection: RawSocket) -> float:
    """Seconds that a connection waited to be accepted, limited so that its request has MIN_TIME_AFTER_QUEUE_S left."""
    return min(queue_wait_s(connection), limits.REQUEST_TIMEOUT_S - limits.MIN_TIME_AFTER_QUEUE_S)


def _with_zone(address: tuple[Any, ...]) -> str:
    """The client's address as text. A link-local address gets its zone, because it is unique on its link only."""
    scope_id = address[3] if len(address) == 4 else 0
    return f'{address[0]}%{scope_id}' if scope_id else str(address[0])
