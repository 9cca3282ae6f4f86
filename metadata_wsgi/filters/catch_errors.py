# SPDX-License-Identifier: Apache-2.0
"""Responds 503 to every exception that no other filter handles. It is the first filter of the pipeline.

The traceback is logged. The client gets a constant 503 with ``Retry-After: 1``. The status is not 500, because the
fault may be temporary, and 503 tells the client to retry. No header, body or secret of the request is logged.

When the pipeline is loaded, this filter is created last. So it also checks the complete pipeline: each environ key that
a filter reads must be set by an earlier filter. Otherwise no WSGI server can load the pipeline. A misspelt option
in the configuration files is logged as a warning.

If gunicorn serves the pipeline, the filter checks gunicorn's settings at the first request. If the settings allow
malformed requests, every request gets 503, and the log names the setting (``pipeline/gunicorn_strictness.py``).

If REQUEST_ID is in environ when a later filter raises, this filter adds the id to the 503. The filter writes only the
key FAILURE. It has no options.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi import limits
from metadata_wsgi.config import config_files, file_warnings
from metadata_wsgi.http import error_responses
from metadata_wsgi.pipeline import environ_keys, gunicorn_strictness, order, request_id
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)


class CatchErrorsFilter:
    """The first filter of the pipeline."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app
        self._lenient_settings: list[str] | None = None
        # (file, line, type) of an exception -> its throttle. Bounded by the number of lines that can raise.
        self._logs: dict[tuple[str, int, type], Throttle] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the rest of the pipeline. Respond 503 if it raises an exception."""
        if self._lenient_settings is None:
            self._lenient_settings = gunicorn_strictness.lenient_settings(
                gunicorn_strictness.settings_of(start_response)
            )
            if self._lenient_settings:
                LOG.critical('Every request gets 503: %s', gunicorn_strictness.message(self._lenient_settings))
        if self._lenient_settings:
            reason = f'gunicorn accepts malformed requests: {", ".join(self._lenient_settings)}'
            environ[environ_keys.FAILURE] = environ_keys.Failure(503, reason)
            # The filter request_id is not reached.
            start_response = request_id.added_to(start_response, request_id.begin(environ))
            return error_responses.unavailable()(environ, start_response)
        try:
            return self.app(environ, start_response)
        except Exception as error:
            self._log(error)
            reason = f'unexpected {type(error).__name__} in the pipeline: see the log'
            environ[environ_keys.FAILURE] = environ_keys.Failure(503, reason)
            start_response = _with_exc_info(start_response)
            if environ_keys.REQUEST_ID in environ:
                start_response = request_id.added_to(start_response, environ[environ_keys.REQUEST_ID])
            return error_responses.unavailable()(environ, start_response)

    def _log(self, error: Exception) -> None:
        """Log the traceback, for each line of code at most once in an interval, because clients repeat requests."""
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = (frame.f_code.co_filename, line, type(error))
        throttle = self._logs.setdefault(place, Throttle(limits.LOG_INTERVAL_S))
        if throttle.allow():
            LOG.error('Unexpected exception in the pipeline; the response was 503', exc_info=error)


def _with_exc_info(start_response: StartResponse) -> StartResponse:
    """``start_response`` with exc_info: it replaces a status that the server has not sent yet (PEP 3333)."""

    def replace_status(
        status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        return start_response(status, headers, sys.exc_info())

    return replace_status


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], CatchErrorsFilter]:
    """For ``use = egg:metadata_wsgi#catch_errors``."""

    def wrap(app: WSGIApplication) -> CatchErrorsFilter:
        outermost = CatchErrorsFilter(app)
        order.check(outermost)
        if not config_files.is_parsed_once():  # else the program logs misspelt names, once for all workers
            file_warnings.log_misspelt_names(global_conf)
        return outermost

    return wrap
