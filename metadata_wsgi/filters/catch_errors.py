# SPDX-License-Identifier: Apache-2.0
"""Answer for what no other filter foresaw. Stands outermost.

The log gets the traceback, the guest a constant 503 with ``Retry-After: 1``: a guest that hears 500
gives up its whole configuration, one that hears 503 asks again. No request header, body or secret is
written to the log.

Being outermost it is built last, so it also asks, once, whether every filter inside it finds what it
reads, and whether the configuration files have a misspelt option; a pipeline that cannot work does not start, by
whichever server it is loaded.
At the first request it checks the settings of a gunicorn that serves it (``gunicorn_strictness``): if that accepts
malformed requests, every request is answered 503, and the log names the setting.
It establishes nothing and trusts nobody. It has no options.
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
        """Call the rest of the pipeline; on any exception before the body, answer 503."""
        if self._lenient_settings is None:
            self._lenient_settings = gunicorn_strictness.lenient_settings(
                gunicorn_strictness.settings_of(start_response)
            )
            if self._lenient_settings:
                LOG.critical('Every guest is answered 503: %s', gunicorn_strictness.message(self._lenient_settings))
        if self._lenient_settings:
            return error_responses.unavailable()(environ, start_response)
        try:
            return self.app(environ, start_response)
        except Exception:
            LOG.exception('Unexpected fault in the pipeline; the guest was answered 503')
            return error_responses.unavailable()(environ, _again(start_response))


def _again(start_response: StartResponse) -> StartResponse:
    """``start_response`` with exc_info, by which a server replaces a status that it has not sent yet (PEP 3333)."""

    def restart(status: str, headers: list[tuple[str, str]], exc_info: object = None, /) -> Callable[[bytes], object]:
        return start_response(status, headers, sys.exc_info())

    return restart


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], CatchErrorsFilter]:
    """For ``use = egg:metadata_wsgi#catch_errors``."""

    def wrap(app: WSGIApplication) -> CatchErrorsFilter:
        outermost = CatchErrorsFilter(app)
        order.check(outermost)
        if not config_files.is_parsed_once():  # else the program logs them, once for all workers
            config_files.log_misspelt_names(global_conf)
        return outermost

    return wrap
