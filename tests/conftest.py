# SPDX-License-Identifier: Apache-2.0
"""For all tests: workers of pytest-xdist are isolated (``pytest -n 2``); only the main thread has a gevent hub.

Coverage traces the main thread only. With ``concurrency = gevent`` it calls ``greenlet.getcurrent`` in each thread that
it traces, and greenlet then makes a state for the thread. At the end of the thread greenlet destroys it without the
GIL, under a lock of its own (``TThreadStateDestroy.cpp``); once in some runs the whole run hung there. What threads of
tests execute is traced in the programs, whose few threads live as long as the program.

No upstream report describes exactly this. The nearest ones, open when this was written: coveragepy issues 1950 (gevent
and threads in one process are not supported) and 2137 (a process with many threads hangs under coverage).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading

from gevent._hub_local import set_default_hub_class
from gevent.hub import Hub

from tests.open_tmp_path import tmp_path_factory

__all__ = ['tmp_path_factory']

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000


class MainThreadHub(Hub):
    """Refuses to start in another thread: the end of a thread that has a hub could hang the run under coverage.

    A test that needs a second event loop starts a process.
    """

    def __init__(self, *args, **kwargs):
        assert threading.current_thread() is threading.main_thread(), 'a gevent hub in a thread'
        super().__init__(*args, **kwargs)


def pytest_configure(config):
    set_default_hub_class(MainThreadHub)
    # Coverage has set its trace function for new threads before.
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
