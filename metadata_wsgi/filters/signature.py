# SPDX-License-Identifier: Apache-2.0
"""Sign the instance id, as Nova requires. Stands last before the app.

The signature is the lower-case hex of HMAC-SHA256 over the instance id with the shared secret, as Nova computes it.
The project id is sent too, because a tenant can make a port with the id of another tenant's instance; Nova compares
the two, and nothing else prevents it (LP#1235450).

``metadata_proxy_shared_secret`` has the value of ``[neutron] metadata_proxy_shared_secret`` in nova.conf; if the two
differ, Nova answers 403 to every request, and ``upstream`` logs it. To change the secret without an outage, write the
new one to ``metadata_proxy_shared_secret`` and the old one to ``metadata_proxy_shared_secret_old``, reload every
agent, then change Nova's, host by host: if Nova refuses one signature (403), ``upstream`` sends the request with the
other and starts with that one from then on. When all of Nova has the new secret, remove the old one.

Each secret may be in a file of its own (``..._file``) or in the systemd credential with the name of the option.
No other file of the pipeline knows the secret. Reads SOURCE and INSTANCE, writes SIGNED_IDENTITY.
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
        help='While the secret is being changed: the old one, used where Nova refuses the new one.',
    ),
    cfg.StrOpt('metadata_proxy_shared_secret_old_file', help='A file with the old secret.'),
]

SIGNATURES_CACHED = 4096
"""Instances whose signature is cached. A boot is 28 requests, and OpenSSL takes longer to start than to sign."""


class SignatureFilter:
    """Writes SIGNED_IDENTITY. ``secrets``: the shared secret, and the old one while it is being changed."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.INSTANCE})
    PROVIDES = frozenset({environ_keys.SIGNED_IDENTITY})

    def __init__(self, app: WSGIApplication, *, secrets: tuple[bytes, ...]) -> None:
        self.app = app
        self._secrets = secrets
        self._cached_signatures = functools.lru_cache(maxsize=SIGNATURES_CACHED)(self.signatures)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Sign, and call the next filter."""
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
    """Nova's signature of an instance id: lower-case hex; Nova refuses upper case."""
    return hmac.digest(shared_secret, instance_id.encode(), 'sha256').hex()


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], SignatureFilter]:
    """For ``use = egg:metadata_wsgi#signature``."""
    conf = config_files.load(global_conf, OPTS)
    both = (conf.metadata_proxy_shared_secret, conf.metadata_proxy_shared_secret_old)
    secrets = tuple(secret.encode() for secret in both if secret)
    return lambda app: SignatureFilter(app, secrets=secrets)
