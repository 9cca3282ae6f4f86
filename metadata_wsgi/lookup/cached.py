# SPDX-License-Identifier: Apache-2.0
"""A directory that remembers what another one said: short, once for many, and for longer while that one is away.

How long an answer is told to guests, by its age:

- One instance: at most ``fresh_s``. A tenth of it and more is left off at random, so that the guests that
  booted together do not ask together again.
- None or several: at most ``none_s``, because the guest that asks too early shall not wait.
- While the other directory is away: one instance up to ``stale_s``; none and several never.

The networks of a router, which a directory may ask for in a step of its own (``remember``), are part of ``fresh_s``:
a fifth of it is theirs, the rest the instance's, so that the two together never exceed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from metadata_wsgi.cache.local import LocalCache, Ttl
from metadata_wsgi.cache.single_flight import SingleFlight, jittered
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.lookup import InstanceLookup
from metadata_wsgi.pipeline.environ_keys import Instance, Source

STEP = 0.2
"""The part of ``fresh_s`` that is the router's networks'."""
SETTLED_S = 1.0
"""An answer that is younger is not asked for again."""


class CachedLookup:
    """Asks ``inner`` where ``memory`` has no answer. ``steps`` is the memory for a router's networks."""

    def __init__(
        self,
        inner: InstanceLookup,
        memory: LocalCache,
        steps: LocalCache,
        *,
        fresh_s: float,
        none_s: float,
        stale_s: float,
    ) -> None:
        self.inner = inner
        self._memory = memory

        def lives(found: Sequence[Instance]) -> Ttl:
            if len(found) != 1:
                return Ttl(jittered(none_s), 0.0)
            return Ttl(jittered(fresh_s * (1 - STEP)), stale_s)

        self._recall = SingleFlight(memory, lives=lives)
        if hasattr(inner, 'remember'):
            networks = SingleFlight(steps, lives=lambda found: Ttl(fresh_s * STEP, 0.0))
            inner.remember = networks

    def find(self, source: Source, deadline: Deadline) -> Sequence[Instance]:
        """The instances that fit ``source``, as ``inner`` says or said a while ago. Raises what it raises."""
        found: Sequence[Instance] = self._recall(_key(source), self._ask(source), deadline)
        return found

    def known(self, source: Source) -> Instance | None:
        """The instance, if one is remembered and fresh. Asks nobody."""
        kept = self._memory.fresh(_key(source))
        return kept.value[0] if kept is not None and len(kept.value) == 1 else None

    def moved(self, source: Source, deadline: Deadline) -> bool:
        """Whether another answer than the remembered one is true, which is then the remembered one.

        False where none is remembered, or one that is younger than ``SETTLED_S``; also while ``inner`` is away,
        for then nobody knows. Raises InstanceLookupError when asking is of no use.
        """
        key = _key(source)
        kept = self._memory.usable(key) or self._memory.fresh(key)
        if kept is None or self._memory.clock() - kept.since_s < SETTLED_S or self._recall.is_away():
            return False
        return bool(self._recall.other(key, kept.value, self._ask(source), deadline) != kept.value)

    def forget(self, source: Source) -> None:
        """Ask ``inner`` the next time."""
        self._memory.forget(_key(source))

    def _ask(self, source: Source) -> Callable[[Deadline], Sequence[Instance]]:
        return lambda deadline: tuple(self.inner.find(source, deadline))


def pack(found: Sequence[Instance]) -> Any:
    """What JSON can carry of an answer."""
    return [[one.instance_id, one.project_id, one.port_id, one.created_at_s] for one in found]


def unpack(packed: Any) -> tuple[Instance, ...]:
    """The answer again. TypeError or ValueError for what is none."""
    instances = tuple(Instance(*one) for one in packed)
    for one in instances:
        if not all(isinstance(text, str) for text in (one.instance_id, one.project_id, one.port_id)):
            raise TypeError('an id that is no text')
        if not isinstance(one.created_at_s, float | None):
            raise TypeError('a moment that is none')
    return instances


def _key(source: Source) -> tuple[str, str, str]:
    return source.address, source.router_id or '', source.network_id or ''
