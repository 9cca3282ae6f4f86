# SPDX-License-Identifier: Apache-2.0
"""503 for every exception that no other filter handles. Stands outermost.

The traceback is logged; the client gets a constant 503 with ``Retry-After: 1``. cloud-init gives up after 500 and
retries after 503. No header, body or secret of the request is logged.

The outermost filter is built last, so this one also checks the finished pipeline, once: each filter finds the keys
that it reads. Otherwise the start is refused, whichever server loads the pipeline. A misspelt option in the
configuration files is logged as a warning.
At the first request it checks the settings of a gunicorn that serves it: if that accepts malformed requests, every
request gets 503 and the log names the setting (``pipeline/gunicorn_strictness.py`` has the settings).
It reads REQUEST_ID, if a filter behind it has set one, and writes no environ key. It has no options.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi import limits
from metadata_wsgi.config import config_files
from metadata_wsgi.http import error_responses
from metadata_wsgi.pipeline import environ_keys, gunicorn_strictness, order, request_id
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)


class CatchErrorsFilter:
    """The outermost filter."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app
        self._lenient_settings: list[str] | None = None
        # File, line and type of an exception -> its throttle. As many as the code has places.
        self._logs: dict[tuple[str, int, type], Throttle] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the rest of the pipeline; 503 for an exception before the body."""
        if self._lenient_settings is None:
            self._lenient_settings = gunicorn_strictness.lenient_settings(
                gunicorn_strictness.settings_of(start_response)
            )
            if self._lenient_settings:
                LOG.critical('Every request gets 503: %s', gunicorn_strictness.message(self._lenient_settings))
        if self._lenient_settings:
            reason = f'gunicorn accepts malformed requests: {", ".join(self._lenient_settings)}'
            environ[environ_keys.FAILURE] = environ_keys.Failure(503, reason)
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
        """Log the traceback, at most once in an interval for each place: a client can repeat its request for ever."""
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = (frame.f_code.co_filename, line, type(error))
        throttle = self._logs.setdefault(place, Throttle(limits.LOG_INTERVAL_S))
        if throttle.allow():
            LOG.error('Unexpected exception in the pipeline; the response was 503', exc_info=error)


def _with_exc_info(start_response: StartResponse) -> StartResponse:
    """``start_response`` with exc_info: with it a server replaces a status that is not sent yet (PEP 3333)."""

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
        if not config_files.is_parsed_once():  # else the program logs them, once for all workers
            config_files.log_misspelt_names(global_conf)
        return outermost

    return wrap
