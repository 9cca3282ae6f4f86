# SPDX-License-Identifier: Apache-2.0
"""Verbs that need root check it first: their other errors would name a file or a namespace, and not the reason."""

from __future__ import annotations

import os

from metadata_wsgi.errors import UsageError


def require_root() -> None:
    """Raise UsageError unless root runs this."""
    if os.geteuid() != 0:
        raise UsageError('only root can enter namespaces and change rules; run it with sudo')
