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


def refused(reason: str) -> WSGIApplication:
    """400: the request itself is wrong. ``reason`` says how, in our words, never in the guest's."""
    return _plain(webob.exc.HTTPBadRequest, reason)


def forbidden() -> WSGIApplication:
    """403: who connected is no namespace proxy."""
    return _plain(webob.exc.HTTPForbidden, 'Only namespace proxies may ask here.')


def no_instance() -> WSGIApplication:
    """404: the lookup succeeded, and no instance, or more than one, is at this address."""
    return _plain(webob.exc.HTTPNotFound, 'No instance was found for this address.')


def too_large(limit: int) -> WSGIApplication:
    """413: the body has more than ``limit`` bytes."""
    return _plain(webob.exc.HTTPRequestEntityTooLarge, f'A request body may have at most {limit} bytes.')


def unavailable() -> WSGIApplication:
    """503 with ``Retry-After: 1``: cloud-init counts 0 as a failure."""
    return _plain(webob.exc.HTTPServiceUnavailable, 'The metadata service is not available now.', ('Retry-After', '1'))


def _plain(kind: type[webob.exc.WSGIHTTPException], text: str, *headers: tuple[str, str]) -> WSGIApplication:
    response = kind(headers=list(headers), content_type='text/plain', charset='UTF-8')
    response.text = text + '\n'
    return response
