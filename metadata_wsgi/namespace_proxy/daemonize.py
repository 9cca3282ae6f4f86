# SPDX-License-Identifier: Apache-2.0
"""Runs the program in the background. The calling process exits when the service is ready.

An L3 agent starts the proxy and waits for its exit code. The calling process exits with 0 when the pid file is
written and the socket listens, or with 1 if the daemon ended before that.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def daemonize() -> Callable[[], None]:
    """Fork twice. Only the daemon returns from this function. It must call the returned function when it is ready.

    The calling process waits in this function. It exits with 0 when the daemon is ready, or with 1 if the daemon ended
    before it was ready.
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
