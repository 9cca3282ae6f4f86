# SPDX-License-Identifier: Apache-2.0
"""Finds the other programs of this package."""

from __future__ import annotations

import os
import sys


def path(name: str) -> str:
    """The path of ``name`` in the directory of this program; if it is not there, ``name``, for a search on PATH."""
    for directory in (os.path.dirname(os.path.abspath(sys.argv[0])), os.path.join(sys.prefix, 'bin')):
        found = os.path.join(directory, name)
        if os.access(found, os.X_OK):
            return found
    return name
