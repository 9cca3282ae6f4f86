# SPDX-License-Identifier: Apache-2.0
"""Gives each request an id: that of the namespace proxy, or a new one. This filter is directly after catch_errors.

The id is in every log line about the request, in the request to Nova (``X-Openstack-Request-Id``), in queries to
Neutron, and in the response to the client. One request has the same id in the logs of the namespace proxy and of the
agent. ``pipeline/request_id.py`` describes which ids are accepted, and which id the client gets if Nova sends one too.

Without this filter log lines have no id, and Nova gets none. The filter writes REQUEST_ID. It has no options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi.pipeline import environ_keys, request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class RequestIdFilter:
    """Sets REQUEST_ID, and adds it to a response that has no id."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES = frozenset({environ_keys.REQUEST_ID})

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set the id and call the next filter."""
        id_ = environ[environ_keys.REQUEST_ID] = request_id.begin(environ)
        # Later filters treat every request with a reserved header as one of an instance (``is_local_request``).
        environ.pop(request_id.HEADER_KEY, None)
        return self.app(environ, request_id.added_to(start_response, id_))


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], RequestIdFilter]:
    """For ``use = egg:metadata_wsgi#request_id``."""
    return RequestIdFilter
