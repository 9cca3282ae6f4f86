# SPDX-License-Identifier: Apache-2.0
"""Leave the terminal, and let the caller wait until the service is there.

An L3 agent starts the proxy and goes on when the call returns; so the call returns when the pid file
is written and the socket listens, with exit code 0, or with 1 when that did not come to pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def daemonize() -> Callable[[], None]:
    """Fork twice into the background; return, in the daemon only, what to call when it is ready.

    The calling process never returns from here: it waits for the daemon's word and exits with 0, or
    with 1 when the daemon ended without it.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os._exit(0 if os.read(reading, 1) else 1)
    os.close(reading)
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
        os.write(writing, b'.')
        os.close(writing)

    return ready
