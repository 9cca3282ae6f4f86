# SPDX-License-Identifier: Apache-2.0
"""Signs the instance id, as Nova requires. This filter must be the last one before the app.

The signature is the HMAC-SHA256 of the instance id with the shared secret, in lower-case hex, as Nova computes it. Nova
also gets the project id of the port, because a tenant can create a port with the id of another tenant's instance. Nova
compares the project id with the project of the instance, and so detects this (LP#1235450).

``metadata_proxy_shared_secret`` must have the value of ``[neutron] metadata_proxy_shared_secret`` in nova.conf. If the
values differ, Nova responds 403 to every request, and ``upstream`` logs this.

To change the secret without an outage:

1. Write the new secret to ``metadata_proxy_shared_secret`` and the old one to ``metadata_proxy_shared_secret_old``.
2. Reload every agent. If the secrets are systemd credentials, restart it: systemd copies them only at its start.
3. Change the secret of Nova, host by host. If Nova rejects a signature (403), ``upstream`` sends the request again with
   the other signature. Later requests are first sent with the signature that Nova accepted last.
4. When every Nova host has the new secret, remove the old secret.

Each secret may be in a file of its own (the options ``..._file``), or in a systemd credential with the option's name.
No other module of the pipeline reads the secret. The filter reads SOURCE and INSTANCE and writes SIGNED_IDENTITY.
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
    cfg.StrOpt(
        'metadata_proxy_shared_secret_file', help='A file with the secret, instead of metadata_proxy_shared_secret.'
    ),
    cfg.StrOpt(
        'metadata_proxy_shared_secret_old',
        secret=True,
        help='The old secret, while the secret is being changed. The agent uses it if Nova rejects the new secret.',
    ),
    cfg.StrOpt('metadata_proxy_shared_secret_old_file', help='A file with the old secret.'),
]

SIGNATURES_CACHED = 4096
"""Number of instances for which the signature is cached. A boot is 28 requests of the same instance."""


class SignatureFilter:
    """Writes SIGNED_IDENTITY. ``secrets``: the shared secret and, while it is being changed, the old secret."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.INSTANCE})
    PROVIDES = frozenset({environ_keys.SIGNED_IDENTITY})

    def __init__(self, app: WSGIApplication, *, secrets: tuple[bytes, ...]) -> None:
        self.app = app
        self._secrets = secrets
        self._cached_signatures = functools.lru_cache(maxsize=SIGNATURES_CACHED)(self.signatures)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Sign the instance id, and call the next filter."""
        instance: environ_keys.Instance = environ[environ_keys.INSTANCE]
        source: environ_keys.Source = environ[environ_keys.SOURCE]
        environ[environ_keys.SIGNED_IDENTITY] = environ_keys.SignedIdentity(
            instance, source.address, self._cached_signatures(instance.instance_id)
        )
        return self.app(environ, start_response)

    def signatures(self, instance_id: str) -> tuple[str, ...]:
        """The signatures of ``instance_id``, one for each secret."""
        return tuple(sign(secret, instance_id) for secret in self._secrets)


def sign(shared_secret: bytes, instance_id: str) -> str:
    """The signature of an instance id that Nova expects, in lower-case hex. Nova rejects upper case."""
    return hmac.digest(shared_secret, instance_id.encode(), 'sha256').hex()


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SignatureFilter]:
    """For ``use = egg:metadata_wsgi#signature``."""
    conf = config_files.load(global_conf, OPTS)
    both = (conf.metadata_proxy_shared_secret, conf.metadata_proxy_shared_secret_old)
    secrets = tuple(secret.encode() for secret in both if secret)
    return lambda app: SignatureFilter(app, secrets=secrets)
