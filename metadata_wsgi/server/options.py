# SPDX-License-Identifier: Apache-2.0
"""Options of the agent's server.

They are in a module of their own: the namespace proxies have the server and not the options, and oslo.config would cost
each of them megabytes.
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


def worker_count(configured: int | None) -> int:
    """Number of workers for the value ``configured`` of ``metadata_workers``. None and 0 mean the default."""
    if configured == 0:
        _log_zero_workers()
    return configured or default_workers()


@functools.cache
def _log_zero_workers() -> None:
    LOG.info('metadata_workers = 0 means the default here: %s', default_workers())


def default_workers() -> int:
    """Half the number of processors, at least one, at most eight. The other processors are for the host's instances."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))
