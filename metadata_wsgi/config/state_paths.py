# SPDX-License-Identifier: Apache-2.0
"""The state directory and the paths in it: the agent's socket and the pid files.

Names and defaults are those of Quantum, so that Quantum's L3 agent and the programs of this package use the same paths.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'state_path',
        default='/var/lib/quantum',
        help='Directory of the socket and the pid files. Neutron installations use /var/lib/neutron.',
    ),
    cfg.StrOpt(
        'metadata_proxy_socket',
        default='$state_path/metadata_proxy',
        help='Unix socket on which the agent listens and to which the namespace proxies connect.',
    ),
]


def pid_file(state_path: str, namespace_id: str) -> str:
    """The path of the pid file of a router's or network's namespace proxy. Grizzly's agents use the same path."""
    return f'{state_path}/external/pids/{namespace_id}.pid'
