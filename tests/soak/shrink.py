# SPDX-License-Identifier: Apache-2.0
"""Reduces a history with a violation to what is needed for it, so that a person can read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.soak.checker import Bounds, Violation, check
from tests.soak.history import History

T = TypeVar('T')
CONTEXT_S = 30.0


def shrink(history: History, violation: Violation, bounds: Bounds) -> History:
    """The smallest history found in which the request of ``violation`` is still one for the same reason.

    Events of other places and of other times are tried first, as they are nearly all.
    """

    def still_fails(assignments: Sequence, faults: Sequence) -> bool:
        found = check(History([violation.request], list(assignments), list(faults)), bounds)
        return any(one.reason == violation.reason for one in found)

    faults = _minimize(history.faults, lambda kept: still_fails(history.assignments, kept))
    assignments = _minimize(history.assignments, lambda kept: still_fails(kept, faults))
    return History([violation.request], assignments, faults)


def describe(history: History, violation: Violation) -> str:
    """The shrunk history as text, with the assignments of the place and of the wrong instance beside it."""
    request = violation.request
    lines = [str(violation), 'what remains of the history:']
    lines += [f'  {one}' for one in sorted([*history.assignments, *history.faults], key=lambda one: one.began_s)]
    return '\n'.join([*lines, f'  {request}'])


def around(history: History, violation: Violation) -> list[str]:
    """What else happened at the place, and to the instance in the response, shortly before the request."""
    request = violation.request
    near = [
        one
        for one in history.assignments
        if one.place == request.place or (one.instance_id and one.instance_id == request.instance_id)
    ]
    faults = [one for one in history.faults if one.ended_s >= request.started_s - CONTEXT_S]
    return [str(one) for one in sorted([*near, *faults], key=lambda one: one.began_s) if one.began_s <= request.ended_s]


def _minimize(events: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Delta debugging: remove ever smaller parts while the rest still fails."""
    kept = list(events)
    size = max(1, len(kept) // 2)
    while kept:
        start, removed = 0, False
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if fails(rest):
                kept, removed = rest, True
            else:
                start += size
        if size == 1 and not removed:
            break
        size = max(1, size // 2)
    return kept
