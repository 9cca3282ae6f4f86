# SPDX-License-Identifier: Apache-2.0
"""Injects one fault while the clients boot, measures what they notice, and judges it by the contract."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.faults.fault import Fault
from tests.chaos.host import Host
from tests.chaos.load import OK, RETRY_AFTER, Exchange, Load

RECOVERY_TIMEOUT_S = 60.0
POLL_S = 0.1
SETTLE_S = 2.0
"""Where the host repairs itself: the time in which a failure must show. A worker may serve for up to a second after
its master was killed, and a request that it served is no proof of recovery.
"""
EARLY_S = 2.0
"""Retries end this long before the deadline at most, with a 503."""


@dataclass(frozen=True)
class Row:
    """A line of the table. ``outcomes`` are those that were no success, with their count.

    ``broken`` are sentences about what the contract does not allow; ``allowed`` says why failures are no breach.
    """

    setup: str
    fault: str
    for_s: float
    requests: int
    outcomes: Mapping[str, int]
    longest_s: float
    recovery_s: float | None
    allowed: str = ''
    broken: Sequence[str] = field(default_factory=list)


def run(setup: str, host: Host, load: Load, fault: Fault, for_s: float) -> Row:
    """Inject ``fault`` for ``for_s`` seconds and wait until every client is served again."""
    load.take()
    began_s = time.monotonic()
    fault.inject(host)
    injected_s, injections = time.monotonic(), 1
    while (now_s := time.monotonic()) < began_s + for_s:
        if fault.every_s and now_s >= injected_s + fault.every_s:
            fault.inject(host)
            injected_s = time.monotonic()
            injections += 1
        time.sleep(POLL_S)
    if fault.repair:
        fault.repair(host)
        repaired_s = time.monotonic()
    else:
        repaired_s = injected_s
    recovered = _wait_for_recovery(host, load, repaired_s, not_before_s=repaired_s + (0 if fault.repair else SETTLE_S))
    exchanges = [exchange for exchange in load.take() if exchange.ended_s >= began_s]
    recovery_s = _recovery_s(exchanges, repaired_s) if recovered else None
    broken = judge(host, fault, exchanges, for_s=for_s, injections=injections)
    if not recovered:
        broken.append(f'not every instance was served within {RECOVERY_TIMEOUT_S + host.deadline_s:g} s of the repair')
    outcomes = Counter(exchange.outcome for exchange in exchanges if exchange.outcome != OK)
    return Row(
        setup, fault.name, for_s, len(exchanges), dict(outcomes),
        max((exchange.ended_s - exchange.started_s for exchange in exchanges), default=0.0),
        recovery_s,
        fault.allows.why if outcomes else '', broken,
    )  # fmt: skip


def judge(host: Host, fault: Fault, exchanges: Sequence[Exchange], *, for_s: float, injections: int) -> list[str]:
    """What the contract does not allow, one sentence for each kind. ``for_s``: the fault lasted so long."""
    allows = fault.allows
    first_router = {client.number for client in host.routers[0].clients}
    served_at_s: dict[int, list[float]] = {router.number: [] for router in host.routers}
    for exchange in exchanges:
        if exchange.outcome == OK:
            served_at_s[host.clients[exchange.client].router_number].append(exchange.ended_s)

    def outlasts(exchange: Exchange) -> bool:
        """Whether the fault lasted longer than the deadline of this request.

        Where the host repairs itself, it lasted as long as no instance behind the same router was served.
        """
        if fault.repair:
            return for_s >= host.deadline_s
        times_s = served_at_s[host.clients[exchange.client].router_number]
        return longest_gap_s(times_s, exchange.started_s, exchange.ended_s) >= host.deadline_s - EARLY_S

    broken: Counter[str] = Counter()
    allowed: Counter[int] = Counter()
    for exchange in exchanges:
        if exchange.outcome == OK:
            if exchange.instance_id != host.clients[exchange.client].instance_id:
                broken["got another instance's metadata"] += 1
            continue
        if exchange.outcome == RETRY_AFTER and outlasts(exchange):
            continue
        concerns = not allows.first_router_only or exchange.client in first_router
        if concerns and exchange.outcome.startswith(allows.outcomes):
            allowed[exchange.client] += 1
            continue
        if concerns and exchange.outcome.startswith(allows.after_deadline) and outlasts(exchange):
            continue
        broken[exchange.outcome] += 1
    if allows.once and (most := max(allowed.values(), default=0)) > injections:
        broken[f'one instance was cut {most} times by {injections} injections'] += 1
    return [f'{count} x {what}' for what, count in broken.items()]


def longest_gap_s(times_s: Iterable[float], from_s: float, until_s: float) -> float:
    """The longest time between ``from_s`` and ``until_s`` without one of ``times_s``."""
    points = sorted([from_s, *(time_s for time_s in times_s if from_s < time_s < until_s), until_s])
    return max(later - earlier for earlier, later in pairwise(points))


def _wait_for_recovery(host: Host, load: Load, repaired_s: float, *, not_before_s: float) -> bool:
    """Whether each client's last request was sent after the repair and was successful, at ``not_before_s`` or later."""
    give_up_at_s = time.monotonic() + RECOVERY_TIMEOUT_S + host.deadline_s
    while time.monotonic() < give_up_at_s:
        last = [load.last.get(client.number) for client in host.clients]
        if time.monotonic() >= not_before_s and all(
            one is not None and one.outcome == OK and one.started_s >= repaired_s for one in last
        ):
            return True
        time.sleep(POLL_S)
    return False


def _recovery_s(exchanges: Sequence[Exchange], repaired_s: float) -> float:
    """Seconds from the repair until each client had a successful response that no failure followed."""
    first: dict[int, float] = {}
    for exchange in sorted(exchanges):
        if exchange.outcome != OK:
            first.pop(exchange.client, None)
        elif exchange.started_s >= repaired_s:
            first.setdefault(exchange.client, exchange.ended_s)
    return max(first.values(), default=repaired_s) - repaired_s
