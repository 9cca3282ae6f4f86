# SPDX-License-Identifier: Apache-2.0
"""The error responses of an app that sends requests to another server, and their log lines.

==============  ======  ==========================================================
error           status  log
==============  ======  ==========================================================
TooLarge        413     -
RequestTimeout  408     INFO, throttled: the client is slow
BadRequest      400     -
NoResponse      503     ERROR, throttled: the server did not respond in time
==============  ======  ==========================================================
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from metadata_wsgi import limits
from metadata_wsgi.errors import BadRequest, NoResponse, RequestTimeout
from metadata_wsgi.http import error_responses, message
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOG = logging.getLogger(__name__)


class ErrorResponse(NamedTuple):
    """An error response. ``reason`` is for the list of recent failures; empty if the client's request is at fault."""

    status: int
    reason: str
    app: WSGIApplication


class ProxyErrors:
    """Converts the exceptions of one app to error responses, and logs them.

    ``server`` names the other server in log messages. ``max_body_bytes`` is the app's limit of a request body.
    """

    def __init__(self, server: str, *, max_body_bytes: int) -> None:
        self._server = server
        self._max_body_bytes = max_body_bytes
        self._no_response_log = Throttle(limits.LOG_INTERVAL_S)
        self._slow_client_log = Throttle(limits.LOG_INTERVAL_S)

    def response(self, error: BadRequest | NoResponse) -> ErrorResponse:
        """The error response for ``error``. Logs it if an operator should know."""
        if isinstance(error, NoResponse):
            if self._no_response_log.allow():
                LOG.error('Requests get 503: no response from %s: %s', self._server, error)
            return ErrorResponse(503, f'no response from {self._server}: {error}', error_responses.unavailable())
        if isinstance(error, message.TooLarge):
            return ErrorResponse(413, '', error_responses.payload_too_large(self._max_body_bytes))
        if isinstance(error, RequestTimeout):
            if self._slow_client_log.allow():
                LOG.info('A request gets 408: its client did not send the body in time')
            return ErrorResponse(408, 'the body did not arrive in time', error_responses.request_timeout())
        return ErrorResponse(400, '', error_responses.bad_request(str(error)))
