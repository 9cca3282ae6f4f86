# SPDX-License-Identifier: Apache-2.0
"""Options of the agent's server.

They are in a module of their own, because namespace proxies use the server without these options. So a namespace proxy
need not import oslo.config, which takes megabytes of memory.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.IntOpt(
        'metadata_workers',
        min=0,
        max=256,
        help='Number of worker processes. One worker can have thousands of requests that wait for Neutron or Nova. '
        "The default, and the meaning of 0 (as in files for Neutron's agent), is half the number of processors, at "
        'least 1 and at most 8.',
    ),
    cfg.IntOpt(
        'metadata_backlog',
        default=4096,
        min=1,
        help='Number of connections that may wait to be accepted. If net.core.somaxconn is smaller, the kernel uses '
        'that number.',
    ),
    cfg.IntOpt(
        'metadata_connections', default=4096, min=16, help='Number of connections that one worker serves at a time.'
    ),
]
