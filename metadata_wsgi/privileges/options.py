# SPDX-License-Identifier: Apache-2.0
"""Options of the user that the agent's workers run as; ``identity`` says what they mean.

They are in a module of their own: the namespace proxies need the identity and not the options, and oslo.config would
cost each of them megabytes.
"""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'metadata_user',
        default='',
        help='User that the workers of the agent run as, a name or uid, if root starts it. '
        'By default metadata-wsgi, or nobody if there is no such user.',
    ),
    cfg.StrOpt(
        'metadata_group', default='', help="Group of the agent's workers, a name or gid. By default that user's own."
    ),
]
