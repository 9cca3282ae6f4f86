# SPDX-License-Identifier: Apache-2.0
"""The table of faults: how each is injected and repaired, in which setups, and what an instance may notice."""

from __future__ import annotations

from tests.chaos.faults import network, of_peer, processes, resources, services, upgrades
from tests.chaos.faults.fault import Fault

OURS: tuple[Fault, ...] = (
    *processes.faults(), *upgrades.faults(), *services.faults(), *network.faults(), *resources.faults(),
)  # fmt: skip
FAULTS = (*OURS, *of_peer.faults(OURS))
