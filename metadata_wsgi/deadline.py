# SPDX-License-Identifier: Apache-2.0
"""The time by which a request must be answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Deadline:
    """When this request must have its answer; one for the whole way, spent by every part of it.

    ``at_s`` is a moment of ``clock`` in seconds; the default clock is the monotonic one.
    """

    at_s: float
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline that is ``seconds`` away from now."""
        return cls(clock() + seconds, clock)

    def remaining_s(self) -> float:
        """Seconds that are left, never below zero."""
        return max(0.0, self.at_s - self.clock())

    def share(self, part: float) -> Deadline:
        """An earlier deadline, after ``part`` of what is left: so that one silent try leaves time for another."""
        now_s = self.clock()
        return Deadline(now_s + max(0.0, self.at_s - now_s) * part, self.clock)
