# SPDX-License-Identifier: Apache-2.0
"""The error response to a request that cannot be parsed: malformed, too large, or with an unknown transfer coding.

The body is constant, and the connection is closed after the response. As every response, it has the id of the request
(``pipeline/request_id.py``).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from gunicorn.http import errors

from metadata_wsgi import limits
from metadata_wsgi.pipeline import request_id

LOG = logging.getLogger(__name__)

PARSE_ERROR_STATUS = {
    errors.LimitRequestLine: (414, 'URI Too Long'),
    errors.LimitRequestHeaders: (431, 'Request Header Fields Too Large'),
    errors.UnsupportedTransferCoding: (501, 'Not Implemented'),
}
"""The status for each exception of gunicorn's parser. All others get 400."""


def send_error(connection: Any, error: Exception, id_: str) -> int:
    """Send the error response for ``error``, a ParseException of gunicorn. Returns its status.

    ``id_`` is the id of the request.
    """
    status, reason = PARSE_ERROR_STATUS.get(type(error), (400, 'Bad Request'))
    body = f'{reason}.\n'.encode()
    head = (
        f'HTTP/1.1 {status} {reason}\r\nConnection: close\r\n{request_id.RESPONSE_HEADER}: {id_}\r\n'
        f'Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n'
    )
    try:
        connection.sendall(head.encode() + body)
    except OSError as closed:
        LOG.debug('The error response was not sent: %s', closed)
    else:
        drain(connection)
    return status


def drain(connection: Any) -> None:
    """Send the end of the response (FIN), then receive and discard the client's data for up to ``limits.DRAIN_S``.

    If data arrived after close(), the kernel would send a reset, and the client might lose the response.
    """
    deadline_s = time.monotonic() + limits.DRAIN_S
    try:
        connection.shutdown(1)
        for _ in range(limits.DRAIN_RECVS):
            connection.settimeout(max(0.001, deadline_s - time.monotonic()))
            if not connection.recv(limits.DRAIN_RECV_BYTES):
                break
    except OSError as closed:
        LOG.debug('Not drained to the end: %s', closed)
