# SPDX-License-Identifier: Apache-2.0
"""Sign the instance id so that Nova believes us. Stands last before upstream.

Sets ``X-Instance-ID``, ``X-Tenant-ID``, ``X-Instance-ID-Signature`` (lower-case hex of HMAC-SHA256
over the instance id with the shared secret, as Nova computes it) and ``X-Forwarded-For``. The tenant
goes along because a tenant can create a port that claims another's instance; only Nova's comparison
of the two stops that (LP#1235450).

``metadata_proxy_shared_secret`` is the same value as ``[neutron] metadata_proxy_shared_secret`` in
nova.conf; where the two differ Nova answers 403 to every guest, and upstream's log line says so.
To change the secret without an outage, put the new one in ``metadata_proxy_shared_secret`` and the one
before in ``metadata_proxy_shared_secret_old``, reload every agent, then change Nova's, host by host: where
Nova refuses the one signature (403) ``upstream`` sends the request with the other, and goes on with the one
that was taken. When Nova has the new one everywhere take the old one out.

Either can stand in a file of its own (``..._file``) or be systemd's credential of the option's name.
This is the only file of the pipeline that knows the secret. Reads SOURCE and INSTANCE, establishes
the signature,
and during a rotation the other signature.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = [
    cfg.StrOpt(
        'metadata_proxy_shared_secret',
        secret=True,
        required=True,
        help='Secret shared with Nova: the value of [neutron] metadata_proxy_shared_secret in nova.conf.',
    ),
    cfg.StrOpt('metadata_proxy_shared_secret_file', help='A file with the secret, instead of the option above.'),
    cfg.StrOpt(
        'metadata_proxy_shared_secret_old',
        secret=True,
        help='While the secret is being changed: the one before, tried where Nova refuses the new one.',
    ),
    cfg.StrOpt('metadata_proxy_shared_secret_old_file', help='A file with the old secret.'),
]


class SignatureFilter:
    """Establishes the headers that Nova authenticates by."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.INSTANCE})
    PROVIDES = frozenset({environ_keys.SIGNED})

    def __init__(self, app: WSGIApplication, *, shared_secret: bytes, old_secret: bytes = b'') -> None:
        self.app = app
        # An instance asks 28 times in a boot; OpenSSL takes longer to begin than to sign.
        self._sign = functools.lru_cache(maxsize=4096)(functools.partial(sign, shared_secret))
        self._sign_old = functools.lru_cache(maxsize=4096)(functools.partial(sign, old_secret)) if old_secret else None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set the headers and go on."""
        instance: environ_keys.Instance = environ[environ_keys.INSTANCE]
        source: environ_keys.Source = environ[environ_keys.SOURCE]
        environ['HTTP_X_FORWARDED_FOR'] = source.address
        environ['HTTP_X_INSTANCE_ID'] = instance.instance_id
        environ['HTTP_X_TENANT_ID'] = instance.project_id
        environ['HTTP_X_INSTANCE_ID_SIGNATURE'] = self._sign(instance.instance_id)
        if self._sign_old:
            environ[environ_keys.OTHER_SIGNATURE] = self._sign_old(instance.instance_id)
        return self.app(environ, start_response)


def sign(shared_secret: bytes, instance_id: str) -> str:
    """Nova's signature of an instance id: lower-case hex, upper case is refused there."""
    return hmac.digest(shared_secret, instance_id.encode(), 'sha256').hex()


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SignatureFilter]:
    """For ``use = egg:metadata_wsgi#signature``."""
    conf = config_files.load(global_conf, OPTS)
    secret = conf.metadata_proxy_shared_secret.encode()
    old = (conf.metadata_proxy_shared_secret_old or '').encode()
    return lambda app: SignatureFilter(app, shared_secret=secret, old_secret=old)
