# SPDX-License-Identifier: Apache-2.0
"""The log files of master and workers. The master opens them as root. The workers' user may not open them.

A worker writes to the file that the master had open when it forked the worker. At SIGHUP the master opens its log files
again and forks new workers, which write to the new files.
"""

from __future__ import annotations

import logging
import logging.handlers

from metadata_wsgi.errors import ConfigError


def keep_open() -> None:
    """Replace the worker's log handlers that would open their file again after a rotation.

    The worker's user may not open the file. The new handlers write to the file that is open until the worker ends.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.handlers.WatchedFileHandler):
            plain = logging.StreamHandler(handler.stream)
            plain.setFormatter(handler.formatter)
            plain.setLevel(handler.level)
            plain.filters = handler.filters
            root.removeHandler(handler)
            root.addHandler(plain)


def reopen() -> None:
    """Open log files again that logrotate has moved. Called before new workers inherit them."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.handlers.WatchedFileHandler):
            handler.acquire()
            try:
                handler.reopenIfNeeded()
            finally:
                handler.release()


def refuse_rotating_handlers() -> None:
    """Raise ConfigError if a log handler rotates its file itself.

    Such a handler renames its file and opens a new one. A worker may do neither in root's directory. So its log lines
    would be lost after the first rotation. Also, several workers would rotate the same file.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.handlers.BaseRotatingHandler):
            raise ConfigError(
                f'log_rotation_type: the workers log to {handler.baseFilename} and cannot rotate it: '
                'remove the option, rotate the file with logrotate and then send SIGHUP'
            )
