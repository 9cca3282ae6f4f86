# SPDX-License-Identifier: Apache-2.0
"""Options of the agent's server.

They are in a module of their own: the namespace proxies have the server and not the options, and oslo.config would cost
each of them megabytes.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.IntOpt(
        'metadata_workers',
        min=0,
        max=256,
        help='Worker processes; each serves thousands of waiting requests. By default, and with 0 (as in files for '
        "Neutron's agent), half the processors.",
    ),
    cfg.IntOpt(
        'metadata_backlog',
        default=4096,
        min=1,
        help='Connections that may wait to be accepted (net.core.somaxconn caps it).',
    ),
    cfg.IntOpt('metadata_connections', default=4096, min=16, help='Connections that one worker serves at a time.'),
]
