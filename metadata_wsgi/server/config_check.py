# SPDX-License-Identifier: Apache-2.0
"""Checks the configuration in a child process, before the master forks its first workers and before a reload.

The master must not import the libraries of the application: workers are forked from the master, and must import these
libraries after gevent's patching.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from metadata_wsgi import limits
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.server import reexec

LOG = logging.getLogger(__name__)


def run_in_child(check: Callable[[], object], is_cancelled: Callable[[], bool] = lambda: False) -> Any:
    """Call ``check`` in a child process. Return its result, which must be a JSON value.

    Raises MetadataError if ``check`` raises an exception, crashes or takes too long, if no child process can be
    started, and when ``is_cancelled()`` returns True.
    """
    try:
        pid, read_end = _start(check)
    except OSError as error:
        raise MetadataError(f'the configuration cannot be checked: {error.strerror}') from error
    data = _read_until_end(read_end, limits.CONFIG_CHECK_TIMEOUT_S, is_cancelled)
    if data is None:
        # No wait: a process in an uninterruptible system call (NFS) does not end. The master reaps it later.
        for child in reexec.running([pid]):
            os.kill(child, signal.SIGKILL)
        if is_cancelled():
            raise MetadataError('the server is stopping')
        raise MetadataError(f'the pipeline did not load within {limits.CONFIG_CHECK_TIMEOUT_S:.0f} s')
    with suppress(ChildProcessError):
        # ``is_cancelled`` may have reaped it.
        os.waitpid(pid, 0)
    try:
        outcome = json.loads(data)
    except ValueError:
        raise MetadataError(
            'the check of the configuration ended without a result: it crashed, or was killed for lack of memory'
        ) from None
    if 'error' in outcome:
        raise MetadataError(outcome['error'])
    return outcome['result']


def _start(check: Callable[[], object]) -> tuple[int, int]:
    """Start the child process. Returns its pid, and the descriptor from which its outcome can be read."""
    read_end, write_end = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    if not pid:
        try:
            os.close(read_end)
            os.write(write_end, json.dumps(_outcome(check)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    return pid, read_end


def _outcome(check: Callable[[], object]) -> dict[str, object]:
    try:
        return {'result': check()}
    except MetadataError as error:
        message = str(error)
    except BaseException as error:
        LOG.exception('The pipeline cannot be loaded')
        message = f'the pipeline cannot be loaded: {type(error).__name__}: {error}'
    # A path in the message may not be UTF-8. The log could not be written then.
    return {'error': message.encode(errors='backslashreplace').decode()}


def _read_until_end(descriptor: int, timeout_s: float, is_cancelled: Callable[[], bool]) -> bytes | None:
    """Read ``descriptor`` to its end and close it. Returns None after ``timeout_s``, or when ``is_cancelled()``."""
    deadline_s = time.monotonic() + timeout_s
    data = b''
    with os.fdopen(descriptor, 'rb', buffering=0) as pipe:
        while time.monotonic() < deadline_s and not is_cancelled():
            if not select.select([pipe], [], [], 0.1)[0]:
                continue
            received = pipe.read(65536)
            if not received:
                return data
            data += received
    return None
