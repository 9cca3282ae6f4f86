# SPDX-License-Identifier: Apache-2.0
"""Say what is remembered, else ask: once for all who want to know it, and the old answer while nobody can say.

Who joins a question that is on its way waits for its outcome, within its own deadline. When whoever is asked
is away (LookupUnavailable), an entry that is still usable is said instead, and for ``RETRY_AFTER_FAILURE_S`` nobody
who has such an entry asks: otherwise each guest would wait for the same silence. Whoever has none asks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

from metadata_wsgi.cache.local import Flight, LocalCache, Ttl
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import LookupUnavailable

RETRY_AFTER_FAILURE_S = 5.0
PATIENCE_S = 2.0
"""How long one who has an old answer waits for a new one."""

Ask = Callable[[Deadline], Any]


def jittered(seconds: float) -> float:
    """``seconds`` or up to a quarter less, so that what was learnt together does not end together."""
    return seconds * random.uniform(0.75, 1.0)  # noqa: S311 (no secret, only spread)


class SingleFlight:
    """Remembers answers in ``memory``, each as long as ``lives`` says. Shared by all threads of a worker."""

    def __init__(self, memory: LocalCache, *, lives: Callable[[Any], Ttl]) -> None:
        self.memory = memory
        self._lives = lives
        self._ask_after_s = float('-inf')

    def __call__(self, key: Hashable, ask: Ask, deadline: Deadline) -> Any:
        """What is known of ``key``, else what ``ask`` says before ``deadline``; raises what ``ask`` raises."""
        known = self.memory.fresh(key)
        if known is not None:
            return known.value
        old = self.memory.usable(key)
        if old is not None and self.is_away():
            return old.value
        return self._once(key, lambda flight: self._find_out(flight, key, ask, deadline), deadline)

    def other(self, key: Hashable, than: Any, ask: Ask, deadline: Deadline) -> Any:
        """What ``ask`` says now that ``than``, which was remembered, is in doubt; or said meanwhile to another who
        doubted it. Raises what ``ask`` raises, and then nothing is forgotten."""
        return self._once(key, lambda flight: self._renew(flight, key, than, ask, deadline), deadline)

    def is_away(self) -> bool:
        """Whether nobody could be asked a moment ago."""
        return self.memory.clock() < self._ask_after_s

    def _once(self, key: Hashable, find: Callable[[Flight], Any], deadline: Deadline) -> Any:
        flight, leads = self.memory.join(key)
        if not leads:
            if not flight.wait(deadline.remaining_s()):
                raise LookupUnavailable('the time was over before another request had found out')
            if flight.outcome is None:
                raise flight.error or LookupUnavailable('another request gave up finding out')
            return flight.outcome[0]
        try:
            value = find(flight)
            flight.outcome = (value,)
        except Exception as error:
            flight.error = error
            raise
        finally:
            self.memory.leave(key, flight)
        return value

    def _renew(self, flight: Flight, key: Hashable, than: Any, ask: Ask, deadline: Deadline) -> Any:
        known = self.memory.fresh(key)
        if known is not None and known.value is not than:
            return known.value
        value = ask(deadline)
        self.memory.keep(key, value, self._lives(value), flight=flight)
        return value

    def _find_out(self, flight: Flight, key: Hashable, ask: Ask, deadline: Deadline) -> Any:
        known = self.memory.fetch(key)
        if known is not None:
            return known.value
        old = self.memory.usable(key)
        try:
            value = ask(deadline if old is None else _sooner(deadline))
        except LookupUnavailable:
            if old is None:
                raise
            self._ask_after_s = self.memory.clock() + jittered(RETRY_AFTER_FAILURE_S)
            return old.value
        self.memory.keep(key, value, self._lives(value), flight=flight)
        return value


def _sooner(deadline: Deadline) -> Deadline:
    now_s = deadline.clock()
    return Deadline(min(deadline.at_s, now_s + PATIENCE_S), deadline.clock)
