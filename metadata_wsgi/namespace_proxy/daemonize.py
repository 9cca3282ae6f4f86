# SPDX-License-Identifier: Apache-2.0
"""Run in the background; the calling process returns when the service is ready.

An L3 agent starts the proxy and waits for its exit code. The calling process exits with 0 when the pid file is
written and the socket listens, or with 1 if the daemon ended before that.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def daemonize() -> Callable[[], None]:
    """Fork twice into the background. Returns, in the daemon only, the function to call when it is ready.

    The calling process never returns from here: it waits until the daemon is ready and exits with 0, or with 1 if the
    daemon ended before.
    """
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        os._exit(0 if os.read(read_end, 1) else 1)
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir('/')
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)

    def ready() -> None:
        for stream in (1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.write(write_end, b'.')
        os.close(write_end)

    return ready
