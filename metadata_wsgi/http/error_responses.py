# SPDX-License-Identifier: Apache-2.0
"""What the guest hears when Nova did not speak: constant sentences that name nothing of the cloud.

A status decides what a guest does next. cloud-init asks again after a 503 with Retry-After and gives
up after a 404 or 500, so 404 is said only when the answer is known to be 'no such instance', and
what may pass is a 503.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import webob.exc

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def bad_request(reason: str) -> WSGIApplication:
    """400: the request itself is wrong. ``reason`` says how, in our words, never in the guest's."""
    return _text_response(webob.exc.HTTPBadRequest, reason)


def instance_not_found() -> WSGIApplication:
    """404: the lookup succeeded, and no instance, or more than one, is at this address."""
    return _text_response(webob.exc.HTTPNotFound, 'No instance was found for this address.')


def unauthorized() -> WSGIApplication:
    """401: a session token is needed and there is none, or it is another guest's, or its time is over."""
    return _text_response(webob.exc.HTTPUnauthorized, 'A session token of this instance is needed.')


def forbidden(reason: str) -> WSGIApplication:
    """403: understood, and not for whoever asks so. ``reason`` says why, in our words."""
    return _text_response(webob.exc.HTTPForbidden, reason)


def not_found() -> WSGIApplication:
    """404: nothing is there, as far as this guest is told."""
    return _text_response(webob.exc.HTTPNotFound, 'The resource could not be found.')


def not_allowed(allowed: str) -> WSGIApplication:
    """405: only the method ``allowed``."""
    return _text_response(webob.exc.HTTPMethodNotAllowed, f'Only {allowed} is allowed here.', ('Allow', allowed))


def too_many_requests(retry_after_s: int) -> WSGIApplication:
    """429: the guest may ask again in ``retry_after_s`` seconds, at least 1."""
    return _text_response(
        webob.exc.HTTPTooManyRequests, 'Too many requests.', ('Retry-After', str(max(1, retry_after_s)))
    )


def payload_too_large(limit: int) -> WSGIApplication:
    """413: the body has more than ``limit`` bytes."""
    return _text_response(webob.exc.HTTPRequestEntityTooLarge, f'A request body may have at most {limit} bytes.')


def unavailable() -> WSGIApplication:
    """503 with ``Retry-After: 1``: cloud-init counts 0 as a failure."""
    return _text_response(
        webob.exc.HTTPServiceUnavailable, 'The metadata service is not available now.', ('Retry-After', '1')
    )


def _text_response(kind: type[webob.exc.WSGIHTTPException], text: str, *headers: tuple[str, str]) -> WSGIApplication:
    response = kind(headers=list(headers), content_type='text/plain', charset='UTF-8')
    response.text = text + '\n'
    return response
