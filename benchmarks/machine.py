# SPDX-License-Identifier: Apache-2.0
"""Description and load of the machine, and resource usage of processes, from /proc."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

TICKS = os.sysconf('SC_CLK_TCK')
PROCESSORS = len(os.sched_getaffinity(0))


def description() -> dict[str, str]:
    """Hardware and software versions, for the report."""
    model = re.search(r'^model name\s*:\s*(.+)$', Path('/proc/cpuinfo').read_text(), re.M)
    memory = re.search(r'^MemTotal:\s*(\d+)', Path('/proc/meminfo').read_text(), re.M)
    return {
        'processor': model[1] if model else platform.processor(),
        'processors': str(PROCESSORS),
        'memory': f'{int(memory[1]) / (1 << 20):.0f} GiB' if memory else 'unknown',
        'kernel': platform.release(),
        'python': platform.python_version(),
        'gunicorn': version('gunicorn'),
        'gevent': version('gevent'),
        'haproxy': _first_line('haproxy', '-v'),
        'wrk': _first_line('wrk', '-v'),
        'metadata_wsgi': version('metadata_wsgi'),
    }


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    words = (done.stdout or done.stderr).split()
    return next((word for word in words if re.search(r'\d\.\d', word)), 'unknown')


def busy_s() -> float:
    """CPU seconds used by all processes since the boot of the machine."""
    with open('/proc/stat') as file:
        user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def wait_until_quiet(for_s: float, give_up_s: float, at_most: float = 0.06) -> bool:
    """Wait until the CPU was busy for at most the share ``at_most`` of ``for_s`` seconds. False after ``give_up_s``."""
    end = time.monotonic() + give_up_s
    quiet_s = 0.0
    while quiet_s < for_s:
        if time.monotonic() > end:
            return False
        began, used = time.monotonic(), busy_s()
        time.sleep(0.5)
        took_s = time.monotonic() - began
        share = (busy_s() - used) / took_s / PROCESSORS
        quiet_s = quiet_s + took_s if share <= at_most else 0.0
    return True


def family(pids: Iterable[int]) -> list[int]:
    """The living processes of ``pids`` and all their descendants."""
    parents = {}
    for entry in os.listdir('/proc'):
        if entry.isdigit() and (fields := _fields(int(entry))) and fields[0] != 'Z':
            parents[int(entry)] = int(fields[1])
    found = {pid for pid in pids if pid in parents}
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found |= more
        grew = bool(more)
    return sorted(found)


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of the processes, including threads and reaped children."""
    return sum(int(ticks) for pid in pids if (fields := _fields(pid)) for ticks in fields[11:15]) / TICKS


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, ..."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2].split()
    except OSError:
        return []


def memory_kib(pids: Iterable[int]) -> int:
    """Sum of the proportional set sizes: shared pages are divided among the processes that share them."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f'/proc/{pid}/smaps_rollup').read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith('Pss:'))
    return total


def descriptors(pids: Iterable[int]) -> int:
    """The number of open file descriptors."""
    return sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in pids if os.path.exists(f'/proc/{pid}/fd'))
