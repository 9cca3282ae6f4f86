# SPDX-License-Identifier: Apache-2.0
"""The password that an instance may write once: at most 1,020 bytes, encrypted by the instance for its owner.

Each password is a file with the instance's id as its name, in a directory that all workers share. The password is
written to a temporary file. Then link(2) gives this file its final name. link(2) fails if the name exists. So only one
of two concurrent posts succeeds, even on different workers, and no request reads half a password. To allow an instance
another password, remove its file.
"""

from __future__ import annotations

import contextlib
import os
import tempfile

MAX_BYTES = 1020
"""Nova stores a password in four fields of 255 characters."""


class Passwords:
    """The passwords in a directory. Instance ids must be valid file names; the inventory checks this."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def get(self, instance_id: str) -> bytes:
        """The password, empty if none is set. Raises OSError if the file cannot be read."""
        with contextlib.suppress(FileNotFoundError), open(self._path(instance_id), 'rb') as file:
            return file.read(MAX_BYTES)
        return b''

    def set_once(self, instance_id: str, password: bytes) -> bool:
        """Store ``password``. Returns False if a password is already set. Raises OSError if it cannot be stored.

        As in Nova, an empty password is not stored, and another password can still be set.
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
