# SPDX-License-Identifier: Apache-2.0
"""503 for every exception that no other filter handles. Stands outermost.

The traceback is logged; the client gets a constant 503 with ``Retry-After: 1``. cloud-init gives up after 500 and
retries after 503. No header, body or secret of the request is logged.

The outermost filter is built last, so this one also checks the finished pipeline, once: each filter finds the keys
that it reads, no option in the configuration files is misspelt, and gunicorn, if it loads the pipeline, is not set to
accept malformed requests (``pipeline/gunicorn_strictness.py`` has the settings). Otherwise the start is refused,
whichever server loads the pipeline.
At the first request the server is checked again, for a gunicorn that was given the finished pipeline: if it accepts
malformed requests, every request gets 503 and the log names the setting.
It reads and writes no environ key. It has no options.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi.config import config_files
from metadata_wsgi.http import error_responses
from metadata_wsgi.pipeline import gunicorn_strictness, order

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

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the rest of the pipeline; 503 for an exception before the body."""
        if self._lenient_settings is None:
            self._lenient_settings = gunicorn_strictness.leniences(gunicorn_strictness.calling(start_response))
            if self._lenient_settings:
                LOG.critical('Every request gets 503: %s', gunicorn_strictness.sentence(self._lenient_settings))
        if self._lenient_settings:
            return error_responses.unavailable()(environ, start_response)
        try:
            return self.app(environ, start_response)
        except Exception:
            LOG.exception('Unexpected exception in the pipeline; the response was 503')
            return error_responses.unavailable()(environ, _with_exc_info(start_response))


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
        gunicorn_strictness.check()
        config_files.check_option_names(global_conf)
        return outermost

    return wrap
