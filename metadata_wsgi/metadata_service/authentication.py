# SPDX-License-Identifier: Apache-2.0
"""Checks the three headers that identify the instance of a request: instance id, tenant id and signature.

The order of the checks and the status codes are those of Nova. A missing header gets 400: the instance id is checked
first, then the signature, then the tenant. A wrong signature gets 403. ``app`` then checks that the instance exists and
belongs to the tenant.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import webob.exc

from metadata_wsgi.http import header_names
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_MANDATORY = (
    (header_names.INSTANCE_ID, 'X-Instance-ID'),
    (header_names.SIGNATURE, 'X-Instance-ID-Signature'),
    (header_names.TENANT_ID, 'X-Tenant-ID'),
)


def authenticate(environ: WSGIEnvironment, shared_secret: bytes) -> tuple[str, str]:
    """The authenticated instance id and tenant id. Raises webob's HTTPBadRequest or HTTPForbidden."""
    if identity := environ.get(environ_keys.SIGNED_IDENTITY):  # at the end of the agent's own pipeline
        instance = identity.instance
        if not any(is_signature(shared_secret, instance.instance_id, signature) for signature in identity.signatures):
            raise webob.exc.HTTPForbidden(explanation='Invalid proxy request signature.')
        return instance.instance_id, instance.project_id
    values = []
    for header, display_name in _MANDATORY:
        value = environ.get(header_names.environ_key(header))
        if value is None:
            raise webob.exc.HTTPBadRequest(explanation=f'{display_name} header is missing from request.')
        values.append(str(value))
    instance_id, signature, tenant_id = values
    if not is_signature(shared_secret, instance_id, signature):
        raise webob.exc.HTTPForbidden(explanation='Invalid proxy request signature.')
    return instance_id, tenant_id


def is_signature(shared_secret: bytes, instance_id: str, signature: str) -> bool:
    """Whether ``signature`` is the lower-case hex HMAC-SHA256 of the id. Compares in constant time."""
    expected = hmac.new(shared_secret, _bytes_of(instance_id), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), _bytes_of(signature))


def _bytes_of(text: str) -> bytes:
    # A header may contain any bytes, but compare_digest accepts only ASCII text.
    return text.encode('utf-8', 'surrogatepass')
