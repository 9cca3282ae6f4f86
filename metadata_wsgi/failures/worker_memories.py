# SPDX-License-Identifier: Apache-2.0
"""The failure memories of all workers of a master. The master has all of them. A worker keeps only its own."""

from __future__ import annotations

import logging

from metadata_wsgi import limits
from metadata_wsgi.failures.shared_memory import FailureMemory

LOG = logging.getLogger(__name__)


class WorkerMemories:
    """The failure memories, by the number of the worker (gunicorn's ``age``).

    The memories of the last ``limits.FORMER_WORKERS`` ended workers are kept too.
    """

    def __init__(self) -> None:
        self._memories: dict[int, FailureMemory] = {}
        self._ended: list[int] = []

    def add(self, number: int) -> None:
        """Make the memory of a worker. Called in the master, before the worker is forked."""
        try:
            self._memories[number] = FailureMemory()
        except OSError as error:
            LOG.warning('The failures of a worker cannot be read by status and report: no shared memory: %s', error)

    def end(self, number: int) -> None:
        """Keep the memory of a worker that has ended. Called in the master. A second call has no effect."""
        if number in self._ended or number not in self._memories:
            return
        self._ended.append(number)
        for former in self._ended[: -limits.FORMER_WORKERS]:
            self.discard(former)
        del self._ended[: -limits.FORMER_WORKERS]

    def discard(self, number: int) -> None:
        """Close the memory of a worker, if it has one."""
        memory = self._memories.pop(number, None)
        if memory is not None:
            memory.close()

    def take(self, number: int) -> FailureMemory | None:
        """The memory of this worker. Called in the worker.

        Closes the memories of other workers, so that a compromised worker can change its own table only.
        """
        own = self._memories.pop(number, None)
        for other in self._memories.values():
            other.close()
        self._memories.clear()
        return own
