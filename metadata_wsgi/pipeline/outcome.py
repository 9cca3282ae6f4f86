# SPDX-License-Identifier: Apache-2.0
"""How far a request got in the pipeline, for filters that only observe (metrics, health, log).

Filters write environ keys before they call the next filter. The keys that exist after the response show which filter
made the response. The observed filters need no code for this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from metadata_wsgi.http import header_names
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

UNIDENTIFIED, SOURCE, INSTANCE, UPSTREAM = 'unidentified', 'source', 'instance', 'upstream'


def stage_reached(environ: WSGIEnvironment) -> str:
    """The last stage that the request reached.

    UNIDENTIFIED: its source is unknown. SOURCE: its source is known, its instance is not. INSTANCE: the instance is
    known, and a filter after ``instance`` made the response. UPSTREAM: it was signed, and the response is Nova's or
    says that Nova is unavailable.
    """
    if environ_keys.SOURCE not in environ:
        return UNIDENTIFIED
    if environ_keys.INSTANCE not in environ:
        return SOURCE
    return UPSTREAM if environ_keys.SIGNED_IDENTITY in environ else INSTANCE


def is_local_request(environ: WSGIEnvironment) -> bool:
    """Whether the request was made on this host, on the agent's unix socket, and not by an instance.

    An instance's request has a namespace (keeper's socket), or headers that a namespace proxy set.
    """
    if environ_keys.NAMESPACE in environ or environ.get('REMOTE_ADDR'):
        return False
    return not any(header_names.is_reserved_key(key) for key in environ)


class StatusRecorder:
    """A ``start_response`` that records the status: three digits, '' before the response starts."""

    def __init__(self, start_response: StartResponse) -> None:
        self.status = ''
        self._start_response = start_response

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        """Record the status and pass everything on."""
        self.status = status[:3]
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)  # type: ignore[arg-type]
