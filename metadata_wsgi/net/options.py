# SPDX-License-Identifier: Apache-2.0
"""Options of the agent's unix socket; ``listeners`` says what they mean.

They are in a module of their own: the keeper and the namespace proxies open sockets and read no options, and
oslo.config would cost each of them megabytes.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'metadata_proxy_socket_mode',
        default='deduce',
        choices=['deduce', 'user', 'group', 'all'],
        help='Who may connect to the socket: the owner, its group too, everybody; deduced from the two options below.',
    ),
    cfg.StrOpt(
        'metadata_proxy_user', default='', help='Owner of the socket, a name or uid: the user of the namespace proxies.'
    ),
    cfg.StrOpt('metadata_proxy_group', default='', help='Group of the socket, a name or gid.'),
]
