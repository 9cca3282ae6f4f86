# SPDX-License-Identifier: Apache-2.0
"""Where the parts of the path meet on the file system: the state directory and the agent's socket.

Both names and defaults are Quantum's, so that an L3 agent, our programs and a Neutron agent that
still runs beside them look in the same place.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'state_path',
        default='/var/lib/quantum',
        help='Directory for the socket and the pid files. Neutron installations have /var/lib/neutron.',
    ),
    cfg.StrOpt(
        'metadata_proxy_socket',
        default='$state_path/metadata_proxy',
        help='Unix socket on which the agent listens and to which every namespace proxy speaks.',
    ),
]


def pid_file(state_path: str, namespace_id: str) -> str:
    """Where the process manager of Grizzly keeps the pid of the proxy of a router or network."""
    return f'{state_path}/external/pids/{namespace_id}.pid'
