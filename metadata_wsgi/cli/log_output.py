# SPDX-License-Identifier: Apache-2.0
"""Sets up the logs of the programs. Every log line about a request has the id of the request.

The agent has all options of oslo.log. The other programs have ``--use-json`` and ``--use-journal``, with the same
meaning as in oslo.log. They import oslo.log only if one of these two options is set, to save memory. Otherwise a log
line is plain text.

A text line has the request id where oslo.log prints it, a JSON line in ``context``, a journal entry in ``REQUEST_ID``.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.pipeline.request_id import CURRENT

if TYPE_CHECKING:
    import argparse

    from oslo_config import cfg

LOG = logging.getLogger(__name__)

NO_JOURNAL = 'use_journal: the Python module systemd is not installed, so the log goes to standard error'


class RequestIdRecord(logging.LogRecord):
    """A log record with the id of the request that its thread or greenlet handles."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        id_ = CURRENT.get()
        if id_:
            # oslo.log's formatters read these attributes. Without ``context`` they would use oslo.context, which has
            # no id here.
            self.request_id = id_
            self.context = {'request_id': id_}


def set_up_oslo_log(conf: cfg.ConfigOpts) -> None:
    """Set up the log with the options of oslo.log in ``conf``. Raises ConfigError if the log cannot be opened."""
    from oslo_log import log

    logging.setLogRecordFactory(RequestIdRecord)
    without_journal = conf.use_journal and not _has_journal()
    if without_journal:
        # systemd writes the standard error of a unit to the journal too.
        conf.set_override('use_journal', False)
        conf.set_override('use_stderr', True)
    try:
        log.setup(conf, 'metadata_wsgi')
    except (log.LogConfigError, OSError, RuntimeError) as error:
        raise ConfigError(f'the log cannot be opened: {error}') from error
    if without_journal:
        LOG.info('%s', NO_JOURNAL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--use-json`` and ``--use-journal``. Both may also be written with underscores."""
    for name, text in (
        ('use_json', 'log lines as JSON objects, as oslo.log writes them'),
        ('use_journal', 'log to the journal of systemd with its fields; needs the Python module systemd'),
    ):
        parser.add_argument(f'--{name.replace("_", "-")}', f'--{name}', dest=name, action='store_true', help=text)


def set_up(
    handlers: list[logging.Handler], *, text_format: str, level: int, use_json: bool = False, use_journal: bool = False
) -> None:
    """Log to ``handlers``, or to the journal, in ``text_format`` or as JSON.

    ``text_format`` may contain ``%(request_id)s``. Its value is ``-`` in a line that is not about a request.
    """
    logging.setLogRecordFactory(RequestIdRecord)
    if use_journal and _has_journal():
        from oslo_log.handlers import OSJournalHandler

        handlers = [OSJournalHandler()]
        text_format = '%(message)s'  # the journal has all else in fields
    formatter: logging.Formatter = logging.Formatter(text_format, defaults={'request_id': '-'})
    if use_json:
        from oslo_log.formatters import JSONFormatter

        formatter = JSONFormatter()
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(handlers=handlers, level=level, force=True)
    if use_journal and not _has_journal():
        LOG.info('%s', NO_JOURNAL)


def _has_journal() -> bool:
    return importlib.util.find_spec('systemd') is not None
