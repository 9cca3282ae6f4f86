# SPDX-License-Identifier: Apache-2.0
"""For all tests: workers of pytest-xdist are isolated (``pytest -n 2``)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading

from tests.open_tmp_path import tmp_path_factory

__all__ = ['tmp_path_factory']

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000


def pytest_configure(config):
    # Threads of this process are clients and servers of the tests: tracing them takes time and finds nothing more.
    threading.settrace(None)
    if hasattr(config, 'workerinput') and os.geteuid() == 0:
        isolate()


def isolate():
    """Enter a new network namespace, with an empty /run/netns: ports and names of namespaces then cannot collide."""
    # os.unshare exists from Python 3.12 on. A thread that is started later inherits the namespaces of this one.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), 'unshare')
    os.makedirs('/run/netns', exist_ok=True)
    for command in ('mount --make-rprivate /', 'mount -t tmpfs tmpfs /run/netns', 'ip link set lo up'):
        subprocess.run(command.split(), check=True)
