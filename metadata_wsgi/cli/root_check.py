# SPDX-License-Identifier: Apache-2.0
"""Checks that root runs a verb. Without this check the error would name a file or a namespace, not the reason."""

from __future__ import annotations

import os

from metadata_wsgi.errors import UsageError


def require_root() -> None:
    """Raise UsageError unless this process runs as root."""
    if os.geteuid() != 0:
        raise UsageError('only root can enter namespaces and change rules; run it with sudo')
