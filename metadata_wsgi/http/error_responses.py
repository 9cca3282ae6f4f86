# SPDX-License-Identifier: Apache-2.0
"""Error responses of the filters and apps: constant texts that reveal nothing about the cloud.

The status tells a client whether it may retry. 404 is final, so a failed lookup never gets 404. Every temporary fault
gets 503 with Retry-After. With the OpenStack datasource cloud-init 25.1.4 retries after 503, but cloud-init 22.4.2 does
not (``doc/cloud_init.md``). So failed requests are first retried on the host (``http/retry.py``).

The statuses of requests that cannot be parsed are in ``server/parse_errors.py``. WebOb is not used here, because its
import costs each process 2.6 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def bad_request(reason: str) -> WSGIApplication:
    """400: the request is wrong. ``reason`` is a constant text and contains nothing from the client."""
    return _text_response(HTTPStatus.BAD_REQUEST, reason)


def instance_not_found() -> WSGIApplication:
    """404: the lookup succeeded and found no instance, or several."""
    return _text_response(HTTPStatus.NOT_FOUND, 'No instance was found for this address.')


def unauthorized() -> WSGIApplication:
    """401: the session token is missing or expired, or belongs to another instance."""
    return _text_response(HTTPStatus.UNAUTHORIZED, 'A session token of this instance is needed.')


def forbidden(reason: str) -> WSGIApplication:
    """403: this client may not send this request. ``reason`` is a constant text."""
    return _text_response(HTTPStatus.FORBIDDEN, reason)


def not_found() -> WSGIApplication:
    """404: the path does not exist, or is hidden from this instance."""
    return _text_response(HTTPStatus.NOT_FOUND, 'The resource could not be found.')


def not_allowed(allowed: str) -> WSGIApplication:
    """405: only the method ``allowed`` is allowed."""
    return _text_response(HTTPStatus.METHOD_NOT_ALLOWED, f'Only {allowed} is allowed here.', ('Allow', allowed))


def too_many_requests(retry_after_s: int) -> WSGIApplication:
    """429: the client may retry after ``retry_after_s`` seconds, at least 1."""
    return _text_response(
        HTTPStatus.TOO_MANY_REQUESTS, 'Too many requests.', ('Retry-After', str(max(1, retry_after_s)))
    )


def request_timeout() -> WSGIApplication:
    """408: the client sent its request too slowly."""
    return _text_response(HTTPStatus.REQUEST_TIMEOUT, 'The request body did not arrive in time.')


def payload_too_large(limit: int) -> WSGIApplication:
    """413: the body has more than ``limit`` bytes."""
    return _text_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f'A request body may have at most {limit} bytes.')


def unavailable() -> WSGIApplication:
    """503 with ``Retry-After: 1``. The value is not 0: cloud-init 25.1 treats 0 as no value."""
    return _text_response(
        HTTPStatus.SERVICE_UNAVAILABLE, 'The metadata service is not available now.', ('Retry-After', '1')
    )


def _text_response(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> WSGIApplication:
    body = f'{text}\n'.encode()
    fields = [*headers, ('Content-Type', 'text/plain; charset=UTF-8'), ('Content-Length', str(len(body)))]

    def response(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(f'{status.value} {status.phrase}', list(fields))
        return [] if environ['REQUEST_METHOD'] == 'HEAD' else [body]

    return response
