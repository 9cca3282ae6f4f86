# SPDX-License-Identifier: Apache-2.0
"""A pause after a failure, shared by a process and its forks. The pause doubles with each failure.

The workers of an agent use the same credentials. With a pause for each worker, every worker would send rejected
credentials to Keystone.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

BASE_PAUSE_S = 5.0
MAX_PAUSE_S = 300.0
"""A compromise. A password that is corrected in Keystone must work within five minutes. A wrong password must cause few
attempts: 7 in the first 315 s, then 12 an hour, more if several workers try at the same moment.

Keystone may still lock the account if its option ``lockout_failure_attempts`` is set. By default it is not set.
"""

_LAYOUT = struct.Struct('=dq')


class SharedPause:
    """A pause of ``BASE_PAUSE_S`` to ``MAX_PAUSE_S``. Each failure doubles the pause.

    Create the object before the fork: the processes share its memory. All processes of a host have the same monotonic
    clock. Two failures at the same moment may count as one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._memory = mmap.mmap(-1, _LAYOUT.size)

    def remaining_s(self) -> float:
        """Seconds until the next attempt is allowed; 0.0 if it is allowed now."""
        until_s, _ = _LAYOUT.unpack_from(self._memory)
        return max(0.0, until_s - self._clock())

    def fail(self) -> float:
        """Start the pause after a failed attempt; return its length in seconds."""
        _, failures = _LAYOUT.unpack_from(self._memory)
        pause_s = min(BASE_PAUSE_S * 2.0 ** min(failures, 30), MAX_PAUSE_S)
        _LAYOUT.pack_into(self._memory, 0, self._clock() + pause_s, failures + 1)
        return pause_s

    def reset(self) -> None:
        """End the pause: an attempt succeeded, or the credentials are new."""
        _LAYOUT.pack_into(self._memory, 0, 0.0, 0)


@runtime_checkable
class UsesSharedPause(Protocol):
    """A lookup with credentials. The agent calls ``use_pause`` with the pause that all workers share."""

    def use_pause(self, pause: SharedPause) -> None:
        """Use ``pause`` for all later attempts."""
