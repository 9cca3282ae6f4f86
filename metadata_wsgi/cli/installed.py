# SPDX-License-Identifier: Apache-2.0
"""Where the other programs of this package are."""

from __future__ import annotations

import os
import sys


def program(name: str) -> str:
    """The program that was installed beside this one, else the one on PATH."""
    for directory in (os.path.dirname(os.path.abspath(sys.argv[0])), os.path.join(sys.prefix, 'bin')):
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK):
            return path
    return name
