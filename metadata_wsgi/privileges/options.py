# SPDX-License-Identifier: Apache-2.0
"""Options of the user that the agent's workers run as. ``identity`` explains the options.

They are in a module of their own, because namespace proxies use ``identity`` without these options. So a namespace
proxy need not import oslo.config, which takes megabytes of memory.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'metadata_user',
        default='',
        help="User of the agent's workers, a name or uid, if root starts the agent. "
        'Default: metadata-wsgi, or nobody if there is no such user.',
    ),
    cfg.StrOpt(
        'metadata_group',
        default='',
        help="Group of the agent's workers, a name or gid. Default: the primary group of metadata_user.",
    ),
]
