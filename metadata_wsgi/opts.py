# SPDX-License-Identifier: Apache-2.0
"""Every option of the package, for the sample file, the reference and the search for misspelt names.

Options are declared beside their use; this is only the list of those places. No other room imports it;
it is published as the entry point ``metadata_wsgi`` of ``oslo.config.opts``.
"""

from __future__ import annotations

from oslo_config import cfg

from metadata_wsgi import paths, server, sockets, trust, upstream
from metadata_wsgi.commands import agent
from metadata_wsgi.confinement import identity
from metadata_wsgi.directories import quantum, static
from metadata_wsgi.filters import (
    cache,
    cache_answers,
    deadline,
    instance,
    metrics,
    path_policy,
    peer_credentials,
    rate_limit,
    session_token,
    signature,
    source,
)
from metadata_wsgi.memory import shared
from metadata_wsgi.metadata_app import app as metadata_app

DEFAULT = (
    agent, paths, sockets, identity, server, peer_credentials, deadline, source, cache, instance, quantum,
    cache_answers, shared, trust, signature, upstream,
)  # fmt: skip


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """(group, options) pairs, in the order of the pipeline."""
    return [
        ('DEFAULT', [opt for module in DEFAULT for opt in module.OPTS]),
        *((group, quantum.GROUP_OPTS) for group in quantum.GROUPS),
        (static.GROUP, static.OPTS),
        *((module.GROUP, module.OPTS) for module in (rate_limit, session_token, path_policy, metrics)),
        (metadata_app.GROUP, metadata_app.OPTS),
    ]
