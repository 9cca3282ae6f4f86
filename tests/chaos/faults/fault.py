# SPDX-License-Identifier: Apache-2.0
"""What a fault is, and what instances may notice of it.

What is not in ``Fault.allows`` breaks the contract: every request gets its own instance's metadata, and while a fault
lasts longer than the deadline of a request, 503 with ``Retry-After``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.host import MODES, Host
from tests.chaos.load import CUT, NO_ROUTE, REFUSED, TIMED_OUT

Action = Callable[[Host], object]


@dataclass(frozen=True)
class Allows:
    """What instances may notice beside ``503 with Retry-After`` of a fault that outlasts the deadline.

    ``outcomes`` and ``after_deadline`` are prefixes of outcomes; the second only where the fault outlasts the deadline.
    Only instances behind the first router may notice them if ``first_router_only``; ``outcomes`` at most once for each
    instance and injection if ``once``.
    """

    outcomes: tuple[str, ...] = ()
    after_deadline: tuple[str, ...] = ()
    first_router_only: bool = False
    once: bool = False
    why: str = ''


NOTHING = Allows()
FRONT_IS_GONE = Allows(
    (CUT,), (TIMED_OUT,), once=True,
    why='The process that had accepted the connection is gone; no process accepts until it is started again',
)  # fmt: skip
FRONT_RESTARTS = Allows((), (TIMED_OUT,), why='No process accepts until it is started again')
FRONT_OF_ROUTER_IS_GONE = Allows((CUT, REFUSED, TIMED_OUT), first_router_only=True, why='Its only process is gone')
FROZEN = Allows((), (TIMED_OUT,), why='The process that accepted the connection cannot respond')
FROZEN_OF_ROUTER = Allows((), (TIMED_OUT,), first_router_only=True, why=FROZEN.why)
ROUTER_IS_AWAY = Allows(
    (CUT, REFUSED, TIMED_OUT, NO_ROUTE), first_router_only=True, why='The instance has no path to the router'
)
NOVAS_STATUS = Allows((), ('status 500', 'status 503'), why="Nova's own response is relayed at the deadline")


@dataclass(frozen=True)
class Fault:
    """``inject`` is called once, or every ``every_s`` seconds; ``repair`` at the end.

    Without ``repair`` the host repairs itself, and the time to recover counts from the last injection. ``missing`` is
    the reason why this machine cannot have the fault.
    """

    name: str
    inject: Action
    repair: Action | None = None
    setups: Sequence[str] = MODES
    every_s: float = 0.0
    allows: Allows = NOTHING
    missing: Callable[[], str] = lambda: ''
