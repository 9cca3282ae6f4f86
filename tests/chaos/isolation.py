# SPDX-License-Identifier: Apache-2.0
"""Runs a program in network, mount and process namespaces of its own: its faults reach nothing else on the machine.

/run/netns is empty there, so ``metadata-wsgi watch`` finds no other router, and the end of the program ends all that it
started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

MARK = 'METADATA_WSGI_CHAOS_ISOLATED'
SETUP = ('mount --make-rprivate / && mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && '
         'ip link set lo up && exec "$@"')  # fmt: skip


def enter(module: str, argv: Sequence[str]) -> None:
    """Replace this process by ``python -m MODULE ARGV`` inside the namespaces; returns if it is inside."""
    if os.environ.pop(MARK, ''):
        return
    if os.geteuid() != 0:
        sys.exit('It makes network namespaces: run it as root')
    command = ['unshare', '--mount', '--net', '--pid', '--fork', '--mount-proc', '--kill-child', 'sh', '-c', SETUP,
               'sh', sys.executable, '-m', module, *argv]  # fmt: skip
    # In the place of this process: its end is theirs.
    os.execvpe(command[0], command, {**os.environ, MARK: '1'})
