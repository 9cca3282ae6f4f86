# SPDX-License-Identifier: Apache-2.0
"""Options of the agent's server.

The options are in a module of their own, because namespace proxies use the server without them. So a namespace proxy
need not import oslo.config, which takes megabytes of memory.
"""

from __future__ import annotations

import functools
import logging
import os

from oslo_config import cfg

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.IntOpt(
        'metadata_workers',
        min=0,
        max=256,
        help='Number of worker processes. One worker can have thousands of requests that wait for Neutron or Nova. '
        'Default: half the number of processors, at least 1 and at most 8. 0, as in some files for '
        "Neutron's agent, means the default.",
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


def worker_count(configured: int | None) -> int:
    """Number of workers for the value ``configured`` of ``metadata_workers``. None and 0 mean the default."""
    if configured == 0:
        _log_zero_workers()
    return configured or default_workers()


@functools.cache
def _log_zero_workers() -> None:
    LOG.info('metadata_workers = 0 means the default here: %s', default_workers())


def default_workers() -> int:
    """Half the number of processors, at least 1, at most 8. The other processors are for the host's instances."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))
