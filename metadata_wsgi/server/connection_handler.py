# SPDX-License-Identifier: Apache-2.0
"""How a connection is served: may it be, what does it ask, the pipeline's answer, and the next request.

- A guest that did not ask the metadata address came past the rules: its connection is closed (``destination``).
- One guest may hold so many connections (``shares`` has the rules), must send a head within ``limits.HEADER_TIMEOUT_S`` and
  ``MAX_HEADER_BYTES`` and a body within ``BODY_TIMEOUT_S``, and may let a body or an answer stand still for ``limits.READ_WRITE_TIMEOUT_S``; the guests
  beside it notice nothing (haproxy's limit is for the whole router: 1,100 half-sent requests of one guest delayed the
  others by 29 s). While a connection waits for its guest, it may be closed in favour of another guest's.
- Of one guest ``limits.MAX_CONCURRENT_PER_CLIENT`` requests are with the pipeline at a time; its others wait their turn (``concurrency_limit``).
- Who sends one request behind the other without a pause lets the others have their turn after ``limits.REQUESTS_PER_YIELD``, and who
  sends a long one after each piece of it.
- A refused request is answered with a constant sentence, 400, 414 or 431, and the connection closed; so is one whose
  body was not read to its end: gunicorn would read on, as long as the guest sends.

``reading`` has what is read, ``reply`` what is sent.
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
from metadata_wsgi.net.addresses import with_interface
from metadata_wsgi.server.concurrency_limit import PerClientConcurrency
from metadata_wsgi.server.connection_limits import ConnectionLimits
from metadata_wsgi.server.request_parser import Body, ParsedRequest, RequestStream
from metadata_wsgi.server.response_writer import ResponseWriter, drain, refuse
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)


# A peer that goes away is no fault of ours, and none that an operator could mend.
DISCONNECT_ERRNOS = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF})


class ConnectionHandler:
    """Serves connections with ``application``, until ``is_stopping``; then what is under way is finished.

    ``settings`` are gunicorn's. ``any_destination``: whoever came past the rules is served too.
    """

    def __init__(
        self,
        application: WSGIApplication,
        settings: Any,
        shares: ConnectionLimits,
        *,
        any_destination: bool,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._application = application
        self._settings = settings
        self._shares = shares
        self._any_destination = any_destination
        self._is_stopping = is_stopping
        self._at_once = PerClientConcurrency(limits.MAX_CONCURRENT_PER_CLIENT)
        self._kept: set[RawSocket] = set()
        self._seldom = Throttle(limits.LOG_INTERVAL_S)
        # Where no peer may say anything about others, the parser need not ask which may.
        self._hears_peers = bool(settings.secure_scheme_headers or settings.forwarder_headers)

    def let_go(self) -> None:
        """End the connections that are only kept. A request that is on its way in already is answered."""
        for connection in list(self._kept):
            try:
                connection.shutdown(0)
            except OSError as error:
                LOG.debug('A kept connection was gone already: %s', error)

    def serve(self, sock: _socket.socket, address: Any, namespace_id: Hashable, environ: WSGIEnvironment) -> None:
        """Serve one connection to its end. ``environ`` is what all requests of its listening socket have in common."""
        # A namespace proxy has no address, and many guests behind it.
        guest = address[0] if isinstance(address, tuple) else ''
        if guest and not self._came_by_the_rules(sock, guest):
            sock.close()
            return
        keys = self._shares.take(namespace_id, guest) if guest else ()
        if keys is None:
            LOG.debug('%s holds all the connections that it may', guest)
            sock.close()
            return
        address_text = with_interface(sock.fileno(), address) if guest else ''
        connection = RawSocket(sock)
        if keys:
            connection.on_block = lambda: self._shares.waits(connection, keys)
        requests = RequestStream(self._settings, connection, address if self._hears_peers else '')
        try:
            self._requests(
                requests, connection, keys[:1], {**environ, 'REMOTE_ADDR': address_text, 'gunicorn.socket': connection}
            )
        except OSError as error:
            if error.errno not in DISCONNECT_ERRNOS and not isinstance(error, TimeoutError):
                LOG.warning('Connection broken: %s', error)
        finally:
            self._shares.speaks(connection)
            self._shares.release(keys)
            connection.close()

    def _came_by_the_rules(self, sock: _socket.socket, guest: str) -> bool:
        try:
            if self._any_destination or original_dst.targets_metadata_address(sock, guest):
                return True
        except OSError as error:
            LOG.debug('Gone before it was served: %s', error)
            return False
        if self._seldom.allow():
            LOG.warning('Refused %s, who did not ask the metadata address: are the rules of this router there?', guest)
        return False

    def _requests(
        self, requests: RequestStream, connection: RawSocket, who: tuple[Hashable, ...], environ: WSGIEnvironment
    ) -> None:
        served = 0
        while True:
            try:
                head = self._next(requests, connection, is_first=not served)
            except errors.ParseException as error:
                refuse(connection, error)
                return
            if head is None or not self._in_turn(head, connection, who, {**environ, **head.fields}):
                return
            if self._is_stopping():
                return
            served += 1
            if served % limits.REQUESTS_PER_YIELD == 0:
                gevent.sleep(0)

    def _next(self, requests: RequestStream, connection: RawSocket, *, is_first: bool) -> ParsedRequest | None:
        """The next request's head; None where there is none. TimeoutError when it does not come in time."""
        if not is_first:
            self._kept.add(connection)
        connection.settimeout(limits.READ_WRITE_TIMEOUT_S if is_first else limits.KEEPALIVE_TIMEOUT_S)
        connection.set_deadline(limits.HEADER_TIMEOUT_S if is_first else limits.KEEPALIVE_TIMEOUT_S)
        try:
            return requests.next()
        finally:
            connection.set_deadline(None)
            connection.settimeout(limits.READ_WRITE_TIMEOUT_S)
            self._shares.speaks(connection)
            self._kept.discard(connection)

    def _in_turn(
        self, head: ParsedRequest, connection: RawSocket, who: tuple[Hashable, ...], environ: WSGIEnvironment
    ) -> bool:
        """Answer it when fewer of the guest are being answered; whether the connection may serve another."""
        if not who:
            return self._answer(head, connection, environ)
        if not self._at_once.enter(who[0], limits.READ_WRITE_TIMEOUT_S):
            LOG.debug('%s asks more at once than can be answered', environ['REMOTE_ADDR'])
            return False
        try:
            return self._answer(head, connection, environ)
        finally:
            self._at_once.leave(who[0])

    def _answer(self, head: ParsedRequest, connection: RawSocket, environ: WSGIEnvironment) -> bool:
        """Call the application; whether the connection may serve another request."""
        if head.expects_continue:
            connection.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        if head.expects_body:
            environ['wsgi.input'] = Body(head.body, lambda: self._shares.speaks(connection))
        reply = ResponseWriter(head, connection, self._settings)
        if self._is_stopping():
            reply.force_close()
        try:
            body = self._application(environ, reply.start_response)
            try:
                for piece in body:
                    reply.write(piece)
                    self._shares.speaks(connection)
                reply.close()
            finally:
                if hasattr(body, 'close'):
                    body.close()
        except OSError:
            raise
        except errors.ParseException as error:
            # A malformed body shows itself only while it is read.
            if not reply.headers_sent:
                refuse(connection, error)
            return False
        except Exception:
            # Begun and not ended: the guest must see a broken answer, not a short one.
            LOG.exception('The answer was cut')
            return False
        if head.unread:
            drain(connection)
            return False
        return not reply.should_close()
