# SPDX-License-Identifier: Apache-2.0
"""Sign the instance id so that Nova believes us. Stands last before upstream.

Sets ``X-Instance-ID``, ``X-Tenant-ID``, ``X-Instance-ID-Signature`` (lower-case hex of HMAC-SHA256
over the instance id with the shared secret, as Nova computes it) and ``X-Forwarded-For``. The tenant
goes along because a tenant can create a port that claims another's instance; only Nova's comparison
of the two stops that (LP#1235450).

``metadata_proxy_shared_secret`` is the same value as ``[neutron] metadata_proxy_shared_secret`` in
nova.conf; where the two differ Nova answers 403 to every guest, and upstream's log line says so.
This is the only file of the pipeline that knows the secret. Reads SOURCE and INSTANCE, establishes
the signature.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi import config, context

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = [
    cfg.StrOpt(
        'metadata_proxy_shared_secret',
        secret=True,
        required=True,
        help='Secret shared with Nova: the value of [neutron] metadata_proxy_shared_secret in nova.conf.',
    ),
]


class SignatureFilter:
    """Establishes the headers that Nova authenticates by."""

    REQUIRES = frozenset({context.SOURCE, context.INSTANCE})
    PROVIDES = frozenset({context.SIGNED})

    def __init__(self, app: WSGIApplication, *, shared_secret: bytes) -> None:
        self.app = app
        # An instance asks 28 times in a boot; OpenSSL takes longer to begin than to sign.
        self._sign = functools.lru_cache(maxsize=4096)(functools.partial(sign, shared_secret))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set the headers and go on."""
        instance: context.Instance = environ[context.INSTANCE]
        source: context.Source = environ[context.SOURCE]
        environ['HTTP_X_FORWARDED_FOR'] = source.address
        environ['HTTP_X_INSTANCE_ID'] = instance.instance_id
        environ['HTTP_X_TENANT_ID'] = instance.project_id
        environ['HTTP_X_INSTANCE_ID_SIGNATURE'] = self._sign(instance.instance_id)
        return self.app(environ, start_response)


def sign(shared_secret: bytes, instance_id: str) -> str:
    """Nova's signature of an instance id: lower-case hex, upper case is refused there."""
    return hmac.digest(shared_secret, instance_id.encode(), 'sha256').hex()


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SignatureFilter]:
    """For ``use = egg:metadata_wsgi#signature``."""
    conf = config.load(global_conf, OPTS)
    secret = conf.metadata_proxy_shared_secret.encode()
    return lambda app: SignatureFilter(app, shared_secret=secret)
