# SPDX-License-Identifier: Apache-2.0
"""Lists every option of the package: for the sample file, the reference and the search for misspelt names.

Each option is declared in the module that uses it. The list of those modules is here. Other packages do not import this
module: they load the list through the entry point ``metadata_wsgi`` of ``oslo.config.opts``.
"""

from __future__ import annotations

from oslo_config import cfg

from metadata_wsgi.cache import shared
from metadata_wsgi.cli import agent
from metadata_wsgi.config import state_paths, tls_options
from metadata_wsgi.filters import deadline, header_source, instance, peer_credentials, signature
from metadata_wsgi.filters.optional import (
    healthcheck,
    lookup_cache,
    metrics,
    otel,
    path_policy,
    rate_limit,
    response_cache,
    session_token,
)
from metadata_wsgi.lookup import neutron, static
from metadata_wsgi.metadata_service import app as metadata_app
from metadata_wsgi.net import options as net_options
from metadata_wsgi.nova_proxy import upstream
from metadata_wsgi.privileges import options as privileges_options
from metadata_wsgi.server import options as server_options

DEFAULT = (
    agent, state_paths, net_options, privileges_options, server_options, peer_credentials, deadline, header_source,
    lookup_cache, instance, neutron, response_cache, shared, tls_options, signature, upstream,
)  # fmt: skip


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Return (group, options) pairs, in the order of the pipeline."""
    return [
        ('DEFAULT', [opt for module in DEFAULT for opt in module.OPTS]),
        *((group, neutron.GROUP_OPTS) for group in neutron.GROUPS),
        (static.GROUP, static.OPTS),
        *(
            (module.GROUP, module.OPTS)
            for module in (rate_limit, session_token, path_policy, healthcheck, metrics, otel)
        ),
        (metadata_app.GROUP, metadata_app.OPTS),
    ]
