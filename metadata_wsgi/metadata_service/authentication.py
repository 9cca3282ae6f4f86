# SPDX-License-Identifier: Apache-2.0
"""Whether a request says truly which instance is asking: three headers, one of them a signature.

The order of the checks and their statuses are Nova's: a header that is missing is 400 (instance id, then
signature, then tenant), a signature that does not fit is 403. Whether the instance exists and is the
tenant's is asked later, and only of who has proved to know the secret.
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
    """The instance id and the tenant id that the request proves; raises webob's HTTPBadRequest or HTTPForbidden."""
    if identity := environ.get(environ_keys.SIGNED_IDENTITY):  # the end of the agent's own pipeline
        instance = identity.instance
        if not any(is_signature(shared_secret, instance.instance_id, signature) for signature in identity.signatures):
            raise webob.exc.HTTPForbidden(explanation='Invalid proxy request signature.')
        return instance.instance_id, instance.project_id
    said = []
    for header, spelt in _MANDATORY:
        value = environ.get(header_names.environ_key(header))
        if value is None:
            raise webob.exc.HTTPBadRequest(explanation=f'{spelt} header is missing from request.')
        said.append(str(value))
    instance_id, signature, tenant_id = said
    if not is_signature(shared_secret, instance_id, signature):
        raise webob.exc.HTTPForbidden(explanation='Invalid proxy request signature.')
    return instance_id, tenant_id


def is_signature(shared_secret: bytes, instance_id: str, signature: str) -> bool:
    """Whether ``signature`` is the lower-case hex HMAC-SHA256 of the id; takes as long whichever digit is wrong."""
    right = hmac.new(shared_secret, _octets(instance_id), hashlib.sha256).hexdigest()
    return hmac.compare_digest(right.encode(), _octets(signature))


def _octets(text: str) -> bytes:
    # A header may hold any octets; compare_digest refuses text that is not ASCII.
    return text.encode('utf-8', 'surrogatepass')
