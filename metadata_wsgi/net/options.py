# SPDX-License-Identifier: Apache-2.0
"""Options of the agent's unix socket. ``listeners`` explains the options.

They are in a module of their own, because keeper and namespace proxies open sockets without these options. So these
programs need not import oslo.config, which takes megabytes of memory in each process.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'metadata_proxy_socket_mode',
        default='deduce',
        choices=['deduce', 'user', 'group', 'all'],
        help='Users that may connect to the socket. user: its owner. group: its owner and group. all: every user. '
        'deduce: user if only metadata_proxy_user is set, else group.',
    ),
    cfg.StrOpt(
        'metadata_proxy_user', default='', help='Owner of the socket, a name or uid: the user of the namespace proxies.'
    ),
    cfg.StrOpt('metadata_proxy_group', default='', help='Group of the socket, a name or gid.'),
]
