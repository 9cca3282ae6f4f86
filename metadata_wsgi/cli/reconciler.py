# SPDX-License-Identifier: Apache-2.0
"""Decides which targets ``watch`` attaches and detaches, and logs the results.

This module makes no system call. ``AttachActions`` attaches and detaches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Protocol

LOG = logging.getLogger(__name__)

FULL_RECONCILE_INTERVAL_S = 60.0
MAX_LINES_PER_ERROR = 8

TargetKey = tuple[str, str]
"""(kind, id). The kind is ``router`` or ``network``."""


class AttachActions(Protocol):
    """The actions on targets. ``attach`` and ``detach`` return the targets that failed, each with an error message."""

    def attach(self, targets: Sequence[TargetKey]) -> Mapping[TargetKey, str]:
        """Attach each target that is not attached, and repair each that is partly attached."""

    def detach(self, targets: Sequence[TargetKey]) -> Mapping[TargetKey, str]:
        """Detach each target that is attached."""

    def in_keeper(self) -> Set[TargetKey] | None:
        """The targets for which the keeper has a socket; None if the keeper does not respond."""

    def ended(self) -> Set[TargetKey]:
        """The targets whose namespace proxy (mode process) has ended since the last call, except by ``detach``."""


class Reconciler:
    """Attaches every namespace of the host, and detaches deleted namespaces.

    ``list_namespaces`` returns the existing namespaces by target, each with its identity. If the identity changes, the
    namespace was deleted and created again under the same name, or an HA router changed its state. Every target is
    attached again each ``full_interval_s`` seconds.
    """

    def __init__(
        self,
        list_namespaces: Callable[[], Mapping[TargetKey, object]],
        actions: AttachActions,
        *,
        full_interval_s: float = FULL_RECONCILE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._list_namespaces = list_namespaces
        self._actions = actions
        self._full_interval_s = full_interval_s
        self._clock = clock
        self._attached: dict[TargetKey, object] = {}
        """The identity that each target had when it was attached; None if it must be attached again."""
        self._in_keeper: Set[TargetKey] = frozenset()
        self._gone: set[TargetKey] = set()
        self._logged: dict[TargetKey, str] = {}
        self._next_full_s = clock() + full_interval_s

    def start(self, leftovers: Iterable[TargetKey]) -> None:
        """Detach ``leftovers``, then reconcile. The namespaces of ``leftovers`` were deleted before the start."""
        self._gone.update(leftovers)
        self.reconcile()

    def reconcile(self) -> None:
        """List the namespaces, attach new ones and detach deleted ones."""
        existing = self._list_namespaces()
        self._gone.update(target for target in self._attached if target not in existing)
        self._gone -= set(existing)
        self._mark_lost(existing)
        if self._clock() >= self._next_full_s:
            self._next_full_s = self._clock() + self._full_interval_s
            self._attached = dict.fromkeys(self._attached)
        for target in self._run_and_log(sorted(self._gone), 'detached', self._actions.detach):
            self._gone.discard(target)
            self._attached.pop(target, None)
            self._logged.pop(target, None)
        due = [target for target in sorted(existing) if self._attached.get(target) != existing[target]]
        # A target is recorded even if its attach fails: it may be partly attached, and must then be detached later.
        self._attached.update(dict.fromkeys(due))
        for target in self._run_and_log(due, 'attached', self._actions.attach):
            self._attached[target] = existing[target]
        if due:
            # Attaching may also have removed sockets from the keeper.
            in_keeper = self._actions.in_keeper()
            self._in_keeper = self._in_keeper if in_keeper is None else in_keeper

    def summary(self) -> str:
        """The state in one line."""
        attached = sum(identity is not None for identity in self._attached.values())
        waiting = len(self._attached) - attached
        text = f'{attached} routers and networks are attached'
        return f'{text}, {waiting} cannot be attached yet' if waiting else text

    def _mark_lost(self, existing: Mapping[TargetKey, object]) -> None:
        """Mark each attached target that ``reconcile`` must attach again.

        Reasons: the identity has changed, the namespace proxy has ended, or the keeper has lost the socket.
        """
        in_keeper = self._actions.in_keeper()
        lost = dict.fromkeys(self._actions.ended(), 'its namespace proxy has ended')
        if in_keeper is not None:
            lost |= dict.fromkeys(self._in_keeper - in_keeper, 'the keeper no longer has a socket for it')
        for target in sorted(existing):
            identity = self._attached.get(target)
            if identity is not None and (identity != existing[target] or target in lost):
                reason = lost.get(target) or _difference(identity, existing[target])
                LOG.warning('%s %s: %s', *target, reason)
                self._attached[target] = None
                self._logged.pop(target, None)
        self._in_keeper = self._in_keeper if in_keeper is None else in_keeper

    def _run_and_log(
        self,
        targets: Sequence[TargetKey],
        success: str,
        action: Callable[[Sequence[TargetKey]], Mapping[TargetKey, str]],
    ) -> list[TargetKey]:
        """Run the action. Log each target whose outcome has changed. Returns the targets without error."""
        errors = action(targets) if targets else {}
        news: dict[str, list[TargetKey]] = {}
        for target in targets:
            outcome = errors.get(target, success)
            if self._logged.get(target) != outcome:
                self._logged[target] = outcome
                news.setdefault(outcome, []).append(target)
        for outcome, concerned in news.items():
            # If the keeper does not respond, a thousand targets have the same error: one line is logged.
            shown = concerned[:1] if outcome != success and len(concerned) > MAX_LINES_PER_ERROR else concerned
            more = f' (and {len(concerned) - 1} more)' if shown != concerned else ''
            for target in shown:
                LOG.log(logging.INFO if outcome == success else logging.WARNING, '%s %s: %s%s', *target, outcome, more)
        return [target for target in targets if target not in errors]


def _difference(former: object, present: object) -> str:
    """The difference of two identities (namespace, HA state), as a text."""
    if isinstance(former, tuple) and isinstance(present, tuple) and former[0] == present[0]:
        return f'its HA state is now {present[1] or "unknown"}'
    return 'its namespace was created again'
