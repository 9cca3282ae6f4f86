# SPDX-License-Identifier: Apache-2.0
"""The page with the sums of all processes, in Prometheus's text format.

The agent serves the page on the address in ``[metrics] listen``. Without this option a separate process can serve the
page (the app ``metrics_page`` of the paste file).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import webob

from metadata_wsgi import limits
from metadata_wsgi.http import error_responses
from metadata_wsgi.metrics import files, options

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

PATH = '/metrics'
MAX_CLIENTS = 8
"""Largest number of concurrent connections to the page in a worker."""


class MetricsPage:
    """The WSGI app that serves ``page()`` at PATH."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, page: Callable[[], bytes]) -> None:
        self._page = page

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond with the page. 404 for another path, 405 for another method, 503 if the files cannot be read."""
        if environ['PATH_INFO'] != PATH:
            return error_responses.not_found()(environ, start_response)
        if environ['REQUEST_METHOD'] not in ('GET', 'HEAD'):
            return error_responses.not_allowed('GET')(environ, start_response)
        try:
            text = self._page()
        except (OSError, ValueError, RuntimeError) as error:
            LOG.error('The metrics cannot be read: %s', error)
            return error_responses.unavailable()(environ, start_response)
        response = webob.Response(text, content_type='text/plain', charset='utf-8')
        response.content_type_params = {'version': '0.0.4', 'charset': 'utf-8'}
        return response(environ, start_response)


class _Collected:
    """Takes the place of a registry: ``generate_latest`` calls only its ``collect()``."""

    def __init__(self, metrics: list[Any]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Any]:
        """The metrics."""
        return self._metrics


def render(directory: str) -> bytes:
    """The page with the sums of the counts in ``directory``."""
    from prometheus_client import generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    with files.locked_to_read(directory):
        metrics = list(MultiProcessCollector.merge(files.of_counts(directory)))  # type: ignore[no-untyped-call]
    return generate_latest(_Collected(metrics))


def serve(listener: socket.socket, app: WSGIApplication) -> Any:
    """Serve ``app`` on ``listener`` inside a worker, in greenlets. Returns an object with ``stop()``.

    A connection is closed if ``limits.HEADER_TIMEOUT_S`` passes until its next request is read, or while a part of the
    response is sent. pywsgi has no timeout, so MAX_CLIENTS idle connections would keep all others from the page.
    """
    import gevent
    from gevent.pool import Pool
    from gevent.pywsgi import WSGIHandler, WSGIServer
    from gevent.socket import socket as gevent_socket

    class Handler(WSGIHandler):
        # args[0] of the exception of a socket's timeout. pywsgi then closes the connection without a traceback.
        ignored_socket_errors = (*WSGIHandler.ignored_socket_errors, 'timed out')

        def handle_one_request(self) -> Any:
            self._header_timeout = gevent.Timeout.start_new(limits.HEADER_TIMEOUT_S)
            try:
                return super().handle_one_request()
            except gevent.Timeout:
                return None  # pywsgi closes the connection
            finally:
                self._header_timeout.close()

        def handle_one_response(self) -> None:
            self._header_timeout.close()
            self.socket.settimeout(limits.HEADER_TIMEOUT_S)
            super().handle_one_response()
            self.socket.settimeout(None)

    # The master opened the listener before gevent's patches, so it is blocking. If another worker is quicker, accept()
    # would block the whole worker.
    nonblocking = gevent_socket(fileno=os.dup(listener.fileno()))
    server = WSGIServer(nonblocking, app, log=None, error_log=LOG, spawn=Pool(MAX_CLIENTS), handler_class=Handler)
    server.start()
    return server


def app_factory(global_conf: Mapping[str, str]) -> MetricsPage:
    """For ``use = egg:metadata_wsgi#metrics_page``."""
    directory = options.load_directory(global_conf)
    return MetricsPage(lambda: render(directory))
