# SPDX-License-Identifier: Apache-2.0
"""The password that a guest may write once: encrypted by the guest for its owner, for us up to 1020 octets.

Each is a file named after the instance, in a directory that all workers share. It is written beside its place
and linked there: a link fails when the name exists, so of two guests' posts one wins, on every worker and
after every restart, and nobody reads half a password. To let a guest set another one, remove its file.
"""

from __future__ import annotations

import contextlib
import os
import tempfile

MAX_BYTES = 1020
"""Nova keeps a password in four fields of 255 characters."""


class Passwords:
    """The passwords in a directory. Ids must be able to name files, which an inventory has checked."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def get(self, instance_id: str) -> bytes:
        """The password, empty if none is set; raises OSError if the file cannot be read."""
        with contextlib.suppress(FileNotFoundError), open(self._path(instance_id), 'rb') as file:
            return file.read(MAX_BYTES)
        return b''

    def set_once(self, instance_id: str, password: bytes) -> bool:
        """Keep ``password``; False if there is one already. Raises OSError if it cannot be kept.

        An empty one sets nothing, as in Nova: the next may still be set.
        """
        if not password:
            return True
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix='.new-') as file:
            file.write(password)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(file.name, self._path(instance_id))
            except FileExistsError:
                return False
        return True

    def _path(self, instance_id: str) -> str:
        return os.path.join(self._directory, instance_id)
