# SPDX-License-Identifier: Apache-2.0
"""The deadline of a request, and ``sleep``, which lets other greenlets run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)  # not frozen: __init__ would take twice the time
class Deadline:
    """The time until which a request must have its response. All steps of a request share one deadline.

    ``at_s`` is a time of ``clock`` in seconds. The default clock is monotonic, so a change of the date has no effect.
    """

    at_s: float
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline ``seconds`` from now."""
        return cls(clock() + seconds, clock)

    def remaining_s(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self.at_s - self.clock())

    def fraction(self, part: float) -> Deadline:
        """An earlier deadline: when ``part`` (0 to 1) of the remaining time has passed."""
        now_s = self.clock()
        return Deadline(now_s + max(0.0, self.at_s - now_s) * part, self.clock)


def sleep(seconds: float) -> None:
    """Call the present ``time.sleep``. Use this function as default argument in code that runs in a worker.

    gevent replaces ``time.sleep`` when a worker starts. In a module that the master has imported, a default argument
    ``time.sleep`` would remain the original function, which blocks the whole worker.
    """
    time.sleep(seconds)
