# SPDX-License-Identifier: Apache-2.0
"""Checks the configuration in a child process, before the master forks its first workers and before a reload.

The master must not import the libraries of the application: workers are forked from the master, and must import these
libraries after gevent's patching.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable

from metadata_wsgi import limits
from metadata_wsgi.errors import MetadataError

LOG = logging.getLogger(__name__)


def run_in_child(check: Callable[[], object], is_cancelled: Callable[[], bool] = lambda: False) -> None:
    """Call ``check`` in a child process. Raises MetadataError if ``check`` raises an exception or takes too long.

    Also raises MetadataError when ``is_cancelled()`` returns True.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        try:
            check()
        except MetadataError as error:
            os.write(write_end, str(error).encode())
        except BaseException as error:
            LOG.exception('The pipeline cannot be loaded')
            os.write(write_end, f'the pipeline cannot be loaded: {type(error).__name__}: {error}'.encode())
        finally:
            os._exit(0)
    os.close(write_end)
    message = _read_until_end(read_end, limits.CONFIG_CHECK_TIMEOUT_S, is_cancelled)
    if message is None:
        # No wait: a process in an uninterruptible system call (NFS) does not end. The master reaps it later.
        os.kill(pid, signal.SIGKILL)
        if is_cancelled():
            raise MetadataError('the server is stopping')
        raise MetadataError(f'the pipeline did not load within {limits.CONFIG_CHECK_TIMEOUT_S:.0f} s')
    os.waitpid(pid, 0)
    if message:
        raise MetadataError(message)


def _read_until_end(descriptor: int, timeout_s: float, is_cancelled: Callable[[], bool]) -> str | None:
    """Read ``descriptor`` to its end and close it. Returns None after ``timeout_s``, or when ``is_cancelled()``."""
    deadline_s = time.monotonic() + timeout_s
    data = b''
    with os.fdopen(descriptor, 'rb', buffering=0) as pipe:
        while time.monotonic() < deadline_s and not is_cancelled():
            if not select.select([pipe], [], [], 0.1)[0]:
                continue
            received = pipe.read(65536)
            if not received:
                return data.decode()
            data += received
    return None
