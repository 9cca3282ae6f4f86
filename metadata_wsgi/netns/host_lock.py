# SPDX-License-Identifier: Apache-2.0
"""A lock file: one attach or detach at a time on a host.

Without the lock, ``watch`` could find a router incomplete while ``attach`` changes the router's mode, and change
the mode back. Namespace proxies and the keeper do not use the lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from metadata_wsgi.errors import NetnsError

NAME = 'attaching'


@contextmanager
def exclusive(state_path: str, name: str = NAME) -> Iterator[None]:
    """Hold the lock file ``name`` in ``state_path``. Waits, without a timeout, until the lock is free.

    Raises NetnsError if another user owns the lock file or may open it: such a user could block every attach.
    """
    path = os.path.join(state_path, name)
    try:
        os.makedirs(state_path, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise NetnsError(f'{path}: {error.strerror}') from error
    try:
        status = os.fstat(lock)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            user = 'root' if os.geteuid() == 0 else 'this user'
            raise NetnsError(f'{path} must belong to {user} and other users must not have access: remove it')
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
