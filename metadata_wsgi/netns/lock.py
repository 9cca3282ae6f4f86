# SPDX-License-Identifier: Apache-2.0
"""One at a time: what a verb of the operator's is half way through, ``watch`` must not take for broken and mend.

Without turns a router that was moved to another mode by hand could be seen between its old and its new one, and moved
back. The namespace proxies and the keeper take no part: what is attached serves without anybody's turn.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from metadata_wsgi.errors import NetnsError

NAME = 'attaching'


@contextmanager
def alone(state_path: str) -> Iterator[None]:
    """While it is entered nobody else on this host attaches or detaches below ``state_path``; waits for its turn.

    NetnsError if the file that is locked is not ours: who could open it could make everybody wait.
    """
    path = os.path.join(state_path, NAME)
    try:
        os.makedirs(state_path, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise NetnsError(f'{path}: {error.strerror}') from error
    try:
        found = os.fstat(lock)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise NetnsError(f"{path} is not only {'root' if os.geteuid() == 0 else 'your'}'s: remove it")
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
