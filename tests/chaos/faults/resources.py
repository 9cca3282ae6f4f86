# SPDX-License-Identifier: Apache-2.0
"""Disk, descriptors and memory are used up, and the clock jumps."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.faults.fault import Action, Fault
from tests.chaos.host import AGENT, KEEPER, MODES, ONE_HOP, PROXY, SHARED, Host
from tests.chaos.setups import FAKETIME

FILLER = 'filler'


def faults() -> Iterator[Fault]:
    yield Fault('state and log directory full', _fill_disks, _empty_disks)
    kept = (SHARED, ONE_HOP)
    # In mode process each namespace proxy has its pid file open.
    yield Fault('state directory read-only', _remount('ro'), _remount('rw'), setups=kept)
    for name, setups in ((AGENT, MODES), (PROXY, (SHARED,)), (KEEPER, kept)):
        yield Fault(f'descriptors of the {name} used up', *_limit(resource.RLIMIT_NOFILE, name, _used_descriptors),
                    setups=setups)  # fmt: skip
        yield Fault(f'memory of the {name} used up', *_limit(resource.RLIMIT_AS, name, _used_memory), setups=setups)
    for offset, name in (('+1d', 'a day ahead'), ('-1d', 'a day back')):
        yield Fault(f'clock of the agent {name}', _set_clock(offset), _set_clock('+0'),
                    setups=(FAKETIME,))  # fmt: skip


def _fill_disks(host: Host) -> None:
    for directory in host.file_systems:
        with contextlib.suppress(OSError), (directory / FILLER).open('wb', buffering=0) as filler:
            while filler.write(b'0' * 4096):
                pass


def _empty_disks(host: Host) -> None:
    for directory in host.file_systems:
        (directory / FILLER).unlink(missing_ok=True)


def _remount(how: str) -> Action:
    def remount(host: Host) -> None:
        command = ['mount', '-o', f'remount,{how}', str(host.state_path)]
        # The kernel refuses while a file there is open for writing, as a lock or a pid file is for a moment.
        host.wait_until(lambda: not subprocess.run(command, check=False, capture_output=True).returncode, 'busy')

    return remount


def _limit(limit: int, name: str, spare: Callable[[int], int]) -> tuple[Action, Action]:
    """Lower a resource limit of a program and its workers to what ``spare(pid)`` says; give it back."""
    former: dict[int, tuple[int, int]] = {}

    def inject(host: Host) -> None:
        unit = host.units[name]
        for pid in (unit.pid, *unit.children()):
            with contextlib.suppress(OSError):
                _, hard = former[pid] = resource.prlimit(pid, limit)
                resource.prlimit(pid, limit, (spare(pid), hard))

    def repair(host: Host) -> None:
        for pid, limits in former.items():
            with contextlib.suppress(OSError):
                resource.prlimit(pid, limit, limits)
        former.clear()

    return inject, repair


def _used_descriptors(pid: int) -> int:
    """The limit that leaves only the numbers that are free between those in use."""
    return max(int(name) for name in os.listdir(f'/proc/{pid}/fd')) + 1


def _used_memory(pid: int) -> int:
    """The address space in use and 256 KiB."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[0]) * resource.getpagesize() + (256 << 10)


def _set_clock(offset: str) -> Action:
    return lambda host: host.set_clock(offset)
