# SPDX-License-Identifier: Apache-2.0
"""The log files of master and workers. Root opens them, and the workers' user may not open them again.

A worker writes to the file that the master had open when it forked the worker. At SIGHUP the master opens its log files
again and forks new workers.
"""

from __future__ import annotations

import logging
import logging.handlers

from metadata_wsgi.errors import ConfigError


def keep_open() -> None:
    """Replace log handlers that open their file again after a rotation: the worker's user may not open it.

    The workers write to the file that the master has open. At SIGHUP the master opens it again and forks new workers.
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

    A worker can neither rename a file in root's directory nor open it again. So its log lines would be lost after the
    first rotation. Also, several workers would rotate the same file.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.handlers.BaseRotatingHandler):
            raise ConfigError(
                f'log_rotation_type: the workers log to {handler.baseFilename} and cannot rotate it: '
                'remove the option, rotate the file with logrotate and then send SIGHUP'
            )
