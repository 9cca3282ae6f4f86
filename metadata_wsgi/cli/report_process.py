# SPDX-License-Identifier: Apache-2.0
"""Starts ``metadata-wsgi report`` at SIGUSR2.

The report is made by a process of its own. The master of a server must not import what a report needs: the workers are
forked from the master, and import libraries after gevent has patched what these use.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from metadata_wsgi.cli import installed_programs

LOG = logging.getLogger(__name__)


def start(state_path: str, program: str, options: Sequence[str] = ()) -> None:
    """Start the report in the background, with the ``options`` that select the configuration of ``program``.

    Raises OSError. It replaces ``report-<program>.txt`` in the state directory.
    """
    path = os.path.join(os.path.abspath(state_path), f'report-{program}.txt')
    argv = [installed_programs.path('metadata-wsgi'), 'report', '--state-path', state_path, '--output', path, *options]
    # gunicorn's master waits for every child. subprocess would complain that nobody waits for this one.
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    LOG.info('SIGUSR2: process %d writes a report to %s', pid, path)
