# SPDX-License-Identifier: Apache-2.0
"""Processes are killed, stopped, reloaded and restarted."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from tests.chaos.faults.fault import (
    FRONT_IS_GONE,
    FRONT_OF_ROUTER_IS_GONE,
    FRONT_RESTARTS,
    FROZEN,
    FROZEN_OF_ROUTER,
    NOTHING,
    Action,
    Fault,
)  # fmt: skip
from tests.chaos.host import AGENT, KEEPER, ONE_HOP, PROCESS, PROXY, SHARED, WATCH, Host


def faults() -> Iterator[Fault]:
    for setups, agent_killed, agent_frozen in (
        ((SHARED, PROCESS), NOTHING, NOTHING),
        ((ONE_HOP,), FRONT_IS_GONE, FROZEN),
    ):
        yield Fault('SIGKILL agent master', _kill(AGENT), setups=setups, every_s=15, allows=agent_killed)
        yield Fault('SIGKILL agent worker', _kill_worker(AGENT), setups=setups, every_s=6, allows=agent_killed)
        yield Fault(
            'SIGSTOP agent worker', _signal_worker(AGENT, signal.SIGSTOP), _signal_worker(AGENT, signal.SIGCONT),
            setups=setups, allows=agent_frozen,
        )  # fmt: skip
    yield Fault('SIGSTOP agent master', _signal(AGENT, signal.SIGSTOP), _signal(AGENT, signal.SIGCONT))
    yield Fault('reload agent in a loop', _signal(AGENT, signal.SIGHUP), every_s=1)
    yield Fault('restart agent', _restart(AGENT), setups=(SHARED, PROCESS), every_s=15)
    yield Fault('restart agent', _restart(AGENT), setups=(ONE_HOP,), every_s=15, allows=FRONT_RESTARTS)
    shared, kept = (SHARED,), (SHARED, ONE_HOP)
    yield Fault('SIGKILL proxy master', _kill(PROXY), setups=shared, every_s=15, allows=FRONT_IS_GONE)
    yield Fault('SIGKILL proxy worker', _kill_worker(PROXY), setups=shared, every_s=6, allows=FRONT_IS_GONE)
    yield Fault(
        'SIGSTOP proxy worker', _signal_worker(PROXY, signal.SIGSTOP), _signal_worker(PROXY, signal.SIGCONT),
        setups=shared, allows=FROZEN,
    )  # fmt: skip
    yield Fault('SIGSTOP proxy master', _signal(PROXY, signal.SIGSTOP), _signal(PROXY, signal.SIGCONT), setups=shared)
    yield Fault('reload proxy in a loop', _signal(PROXY, signal.SIGHUP), setups=shared, every_s=1)
    yield Fault('restart proxy', _restart(PROXY), setups=shared, every_s=15, allows=FRONT_RESTARTS)
    yield Fault('SIGKILL keeper', _kill(KEEPER), setups=kept, every_s=5)
    yield Fault('SIGSTOP keeper', _signal(KEEPER, signal.SIGSTOP), _signal(KEEPER, signal.SIGCONT), setups=kept)
    yield Fault('restart keeper', _restart(KEEPER), setups=kept, every_s=5)
    yield Fault(
        'SIGKILL keeper and proxy', _kill_together(KEEPER, PROXY), setups=shared, every_s=15, allows=FRONT_IS_GONE
    )
    yield Fault('SIGKILL keeper and agent', _kill_together(KEEPER, AGENT), setups=(ONE_HOP,), every_s=15,
                allows=FRONT_IS_GONE)  # fmt: skip
    yield Fault('restart everything', _restart(KEEPER, PROXY, AGENT, WATCH), setups=shared, every_s=15,
                allows=FRONT_RESTARTS)  # fmt: skip
    yield Fault('SIGKILL holder', _signal_router_process(signal.SIGKILL), setups=shared)
    yield Fault('SIGKILL proxy of one router', _signal_router_process(signal.SIGKILL), setups=(PROCESS,), every_s=10,
                allows=FRONT_OF_ROUTER_IS_GONE)  # fmt: skip
    yield Fault('SIGSTOP proxy master of one router', _signal_router_process(signal.SIGSTOP),
                _signal_router_process(signal.SIGCONT), setups=(PROCESS,), allows=FROZEN_OF_ROUTER)  # fmt: skip
    yield Fault('SIGKILL watch', _kill(WATCH), every_s=3)


def _kill(name: str) -> Action:
    return lambda host: host.units[name].kill(signal.SIGKILL)


def _kill_worker(name: str) -> Action:
    """One worker, another one each time."""

    def kill(host: Host) -> None:
        for pid in host.units[name].children()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return kill


def _signal_worker(name: str, number: int) -> Action:
    def send(host: Host) -> None:
        for pid in host.units[name].children()[: None if number == signal.SIGCONT else 1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    return send


def _signal(name: str, number: int) -> Action:
    return lambda host: host.units[name].kill(number)


def _signal_router_process(number: int) -> Action:
    """To the first router's holder (mode shared) or namespace proxy (mode process)."""

    def send(host: Host) -> None:
        if pid := host.pid_of(host.routers[0]):
            os.kill(pid, number)

    return send


def _restart(*names: str) -> Action:
    def restart(host: Host) -> None:
        for name in names:
            host.units[name].restart()

    return restart


def _kill_together(*names: str) -> Action:
    def kill(host: Host) -> None:
        for name in names:
            host.units[name].kill(signal.SIGKILL)

    return kill
