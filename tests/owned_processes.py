# SPDX-License-Identifier: Apache-2.0
"""SIGKILL for the processes of a test only: the kernel soon gives the number of an ended process to another one."""

import contextlib
import os
import signal
from pathlib import Path


def kill_group(process):
    """SIGKILL to what is left of the group of ``process``, a Popen with ``start_new_session``."""
    # After the process was waited for, a process with its number is another one.
    if process.poll() is None or not Path(f'/proc/{process.pid}').exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def kill_from_file(pid_file, text):
    """SIGKILL to the process whose number is in ``pid_file``, if ``text`` is in its command line."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if text.encode() in Path(f'/proc/{pid}/cmdline').read_bytes():
            os.kill(pid, signal.SIGKILL)
