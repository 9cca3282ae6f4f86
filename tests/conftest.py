# SPDX-License-Identifier: Apache-2.0
"""Isolates the workers of pytest-xdist from each other (``pytest -n 2``)."""

from __future__ import annotations

import ctypes
import os
import subprocess

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000


def pytest_configure(config):
    """Each worker gets a network namespace and an empty /run/netns, so that ports and namespace names cannot collide."""
    if not hasattr(config, 'workerinput') or os.geteuid():
        return
    # os.unshare exists from Python 3.12 on. A thread that is started later inherits the namespaces of this one.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), 'unshare')
    os.makedirs('/run/netns', exist_ok=True)
    for command in ('mount --make-rprivate /', 'mount -t tmpfs tmpfs /run/netns', 'ip link set lo up'):
        subprocess.run(command.split(), check=True)
