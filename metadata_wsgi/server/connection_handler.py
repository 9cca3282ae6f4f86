# SPDX-License-Identifier: Apache-2.0
"""Handles one connection: checks and limits it, then reads requests and sends responses until it ends.

- A connection that was not made to the metadata address is closed (``net.original_dst``).
- Connections per client are limited (``connection_limits``). While the server waits for a client, that client's
  connection may be closed in favour of another one.
- Timeouts (``limits``): HEADER_TIMEOUT_S for a header, BODY_TIMEOUT_S for a body, READ_WRITE_TIMEOUT_S for a pause
  inside a body or a response, KEEPALIVE_TIMEOUT_S between two requests. They apply to each connection; other clients
  are not delayed. (Measured with Neutron's haproxy, whose connection limit is for the whole router: 1,100 half-sent
  requests of one client delayed the others by 29 s.)
- The pipeline processes at most MAX_CONCURRENT_PER_CLIENT requests of a client at a time (``concurrency_limit``).
- A client that pipelines requests gives way to other connections after REQUESTS_PER_YIELD of them, and inside a long
  body after each recv().
- A malformed request gets a constant error response (400, 414, 431), then the connection is closed. It is also closed
  after a request whose body the application did not read to its end: gunicorn would read on for as long as the client
  sends.

``request_parser`` reads requests, ``response_writer`` writes responses.
"""

from __future__ import annotations

import _socket
import errno
import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import gevent
from gunicorn.http import errors

from metadata_wsgi import limits
from metadata_wsgi.http.raw_socket import RawSocket
from metadata_wsgi.net import original_dst
from metadata_wsgi.server.concurrency_limit import PerClientConcurrency
from metadata_wsgi.server.connection_limits import ConnectionLimits
from metadata_wsgi.server.request_parser import Body, ParsedRequest, RequestStream
from metadata_wsgi.server.response_writer import ResponseWriter, drain, send_error
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)


DISCONNECT_ERRNOS = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF})
"""The client closed the connection. Not logged: it is neither a fault of the server nor of its operator."""


class ConnectionHandler:
    """Serves ``application`` on connections.

    ``settings`` are gunicorn's. With ``any_destination`` connections to other addresses than the metadata address are
    served too. Once ``is_stopping()`` is true, a connection is closed after the request in progress.
    """

    def __init__(
        self,
        application: WSGIApplication,
        settings: Any,
        connection_limits: ConnectionLimits,
        *,
        any_destination: bool,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._application = application
        self._settings = settings
        self._limits = connection_limits
        self._any_destination = any_destination
        self._is_stopping = is_stopping
        self._concurrency = PerClientConcurrency(limits.MAX_CONCURRENT_PER_CLIENT)
        self._idle: set[RawSocket] = set()
        self._wrong_destination_log = Throttle(limits.LOG_INTERVAL_S)
        # Without these settings the parser does not look at the peer's address, and need not get it.
        self._peer_may_set_headers = bool(settings.secure_scheme_headers or settings.forwarder_headers)

    def close_idle(self) -> None:
        """Close the idle keep-alive connections. A request that has arrived already gets its response."""
        for connection in list(self._idle):
            try:
                connection.shutdown(0)
            except OSError as error:
                LOG.debug('An idle connection was closed by the client: %s', error)

    def handle(self, sock: _socket.socket, address: Any, namespace_id: Hashable, environ: WSGIEnvironment) -> None:
        """Handle one connection until its end.

        ``address`` is the peer's, as accept() returns it. ``environ`` has the keys that all requests of the listener
        have in common.
        """
        # The peer on a unix socket is a namespace proxy: it has no address, and many clients behind it.
        client = address[0] if isinstance(address, tuple) else ''
        if client and not self._is_redirected(sock, client):
            sock.close()
            return
        groups = self._limits.admit(namespace_id, client) if client else ()
        if groups is None:
            LOG.debug('%s is at its connection limit; its new connection was closed', client)
            sock.close()
            return
        connection = RawSocket(sock)
        if groups:
            connection.on_block = lambda: self._limits.mark_idle(connection, groups)
        requests = RequestStream(self._settings, connection, address if self._peer_may_set_headers else '')
        try:
            self._serve_requests(
                requests, connection, groups[:1], {**environ, 'REMOTE_ADDR': client, 'gunicorn.socket': connection}
            )
        except OSError as error:
            if error.errno not in DISCONNECT_ERRNOS and not isinstance(error, TimeoutError):
                LOG.warning('Connection broken: %s', error)
        finally:
            self._limits.mark_active(connection)
            self._limits.release(groups)
            connection.close()

    def _is_redirected(self, sock: _socket.socket, client: str) -> bool:
        try:
            if self._any_destination or original_dst.targets_metadata_address(sock, client):
                return True
        except OSError as error:
            LOG.debug('The client closed the connection before it was handled: %s', error)
            return False
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
            try:
                request = self._next_request(requests, connection, is_first=not served)
            except errors.ParseException as error:
                send_error(connection, error)
                return
            if request is None or not self._with_concurrency_slot(
                request, connection, client_key, {**environ, **request.fields}
            ):
                return
            if self._is_stopping():
                return
            served += 1
            if served % limits.REQUESTS_PER_YIELD == 0:
                gevent.sleep(0)

    def _next_request(self, requests: RequestStream, connection: RawSocket, *, is_first: bool) -> ParsedRequest | None:
        """Read the next request's header; None at the end of the connection. TimeoutError if it does not arrive."""
        if not is_first:
            self._idle.add(connection)
        connection.settimeout(limits.READ_WRITE_TIMEOUT_S if is_first else limits.KEEPALIVE_TIMEOUT_S)
        connection.set_deadline(limits.HEADER_TIMEOUT_S if is_first else limits.KEEPALIVE_TIMEOUT_S)
        try:
            return requests.next()
        finally:
            connection.set_deadline(None)
            connection.settimeout(limits.READ_WRITE_TIMEOUT_S)
            self._limits.mark_active(connection)
            self._idle.discard(connection)

    def _with_concurrency_slot(
        self,
        request: ParsedRequest,
        connection: RawSocket,
        client_key: tuple[Hashable, ...],
        environ: WSGIEnvironment,
    ) -> bool:
        """Wait for a slot of the client, then respond; returns whether the connection may serve another request.

        ``client_key`` is empty for a namespace proxy, whose requests are not limited.
        """
        if not client_key:
            return self._respond(request, connection, environ)
        if not self._concurrency.acquire(client_key[0], limits.READ_WRITE_TIMEOUT_S):
            LOG.debug('%s is at its limit of concurrent requests', environ['REMOTE_ADDR'])
            return False
        try:
            return self._respond(request, connection, environ)
        finally:
            self._concurrency.release(client_key[0])

    def _respond(self, request: ParsedRequest, connection: RawSocket, environ: WSGIEnvironment) -> bool:
        """Call the application and send its response; returns whether the connection may serve another request."""
        if request.expects_continue:
            connection.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        if request.expects_body:
            environ['wsgi.input'] = Body(request.body, lambda: self._limits.mark_active(connection))
        response = ResponseWriter(request, connection)
        if self._is_stopping():
            response.force_close()
        try:
            body = self._application(environ, response.start_response)
            try:
                for piece in body:
                    response.write(piece)
                    self._limits.mark_active(connection)
                response.close()
            finally:
                if hasattr(body, 'close'):
                    body.close()
        except OSError:
            raise
        except errors.ParseException as error:
            # A malformed chunked body is detected only when the application reads it.
            if not response.headers_sent:
                send_error(connection, error)
            return False
        except Exception:
            # The closed connection shows the client that the response is incomplete.
            LOG.exception('The response was cut off')
            return False
        if request.has_unread_body:
            drain(connection)
            return False
        return not response.should_close()
