# SPDX-License-Identifier: Apache-2.0
"""Starts ``metadata-wsgi report`` at SIGUSR2.

A separate process writes the report. The master of a server must not import the modules that a report needs: its
workers must import these modules after gevent's patching.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from metadata_wsgi.cli import installed_programs

LOG = logging.getLogger(__name__)


def start(state_path: str, program: str, options: Sequence[str] = ()) -> None:
    """Start the report in the background, with the ``options`` that select the configuration of ``program``.

    The report replaces the file ``report-<program>.txt`` in the state directory. Raises OSError if the process cannot
    be started.
    """
    path = os.path.join(os.path.abspath(state_path), f'report-{program}.txt')
    argv = [installed_programs.path('metadata-wsgi'), 'report', '--state-path', state_path, '--output', path, *options]
    # gunicorn's master reaps every child. subprocess would warn that it has not reaped this one.
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    LOG.info('SIGUSR2: process %d writes a report to %s', pid, path)
