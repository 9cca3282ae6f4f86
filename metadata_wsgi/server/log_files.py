# SPDX-License-Identifier: Apache-2.0
"""The log files of master and workers. The master opens them as root. The workers' user may not open them.

A worker writes to the file that the master had open when it forked the worker. At SIGHUP the master opens its log files
again and forks new workers, which write to the new files.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
from contextlib import suppress

from metadata_wsgi.errors import ConfigError

LOG = logging.getLogger(__name__)


class LogFile(logging.handlers.WatchedFileHandler):
    """Writes to the former file while the new one cannot be opened.

    The handler of the standard library raises OSError then, at each log line. This would end the master.
    """

    error: OSError | None = None
    """Why the new file could not be opened; None if the file at the path is written."""

    def reopenIfNeeded(self) -> None:  # noqa: N802
        """Called before each log line: open the file again if it was moved."""
        try:
            found = os.stat(self.baseFilename)
        except OSError:
            is_moved = True
        else:
            is_moved = (found.st_dev, found.st_ino) != (self.dev, self.ino)
        self.error = None
        if not is_moved:
            return
        former = self.stream
        try:
            self.stream = self._open()
        except OSError as error:
            self.error = error
            return
        self._statstream()
        if former is not None:
            # Writes what is left in the buffer: on a full disk this fails again.
            with suppress(OSError):
                former.close()


def watch() -> None:
    """Make the log handlers that open their file again after a rotation continue if this fails."""
    for handler in list(logging.getLogger().handlers):
        if type(handler) is logging.handlers.WatchedFileHandler:
            _replace(handler, LogFile(handler.baseFilename, handler.mode, handler.encoding))
            # As above: a full disk must not prevent the start.
            with suppress(OSError):
                handler.close()


def _replace(handler: logging.Handler, new: logging.Handler) -> None:
    new.setFormatter(handler.formatter)
    new.setLevel(handler.level)
    new.filters = handler.filters
    root = logging.getLogger()
    root.removeHandler(handler)
    root.addHandler(new)


def keep_open() -> None:
    """Replace the worker's log handlers that would open their file again after a rotation.

    The worker's user may not open the file. The new handlers write to the file that is open until the worker ends.
    """
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.handlers.WatchedFileHandler):
            _replace(handler, logging.StreamHandler(handler.stream))


def reopen() -> None:
    """Open log files again that logrotate has moved. Called before new workers inherit them."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.acquire()
            try:
                handler.reopenIfNeeded()
            finally:
                handler.release()
            if handler.error:
                LOG.warning('The log file cannot be opened again, the former one is written: %s', handler.error)


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
