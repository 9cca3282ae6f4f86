# SPDX-License-Identifier: Apache-2.0
"""The last of four stages that a request reached in the pipeline: for the filters ``metrics`` and ``healthcheck``.

Filters write environ keys before they call the next filter. So after the response the existing keys show the stage, but
not which filter made the response. The filters that write the keys need no code for this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from metadata_wsgi.http import header_names
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

UNIDENTIFIED, SOURCE, INSTANCE, UPSTREAM = 'unidentified', 'source', 'instance', 'upstream'


def stage_reached(environ: WSGIEnvironment) -> str:
    """The last stage that the request reached.

    UNIDENTIFIED: the source is unknown. SOURCE: the source is known, the instance is unknown. INSTANCE: the instance is
    known, and a filter after ``instance`` made the response. UPSTREAM: the request was signed, and the response is from
    Nova or from UpstreamApp itself (400, 408, 413, 503).
    """
    if environ_keys.SOURCE not in environ:
        return UNIDENTIFIED
    if environ_keys.INSTANCE not in environ:
        return SOURCE
    return UPSTREAM if environ_keys.SIGNED_IDENTITY in environ else INSTANCE


def is_local_request(environ: WSGIEnvironment) -> bool:
    """Whether a process on this host sent the request on the agent's unix socket, and not an instance.

    A request of an instance has a namespace (on a socket of the keeper), or headers that a namespace proxy set.
    """
    if environ_keys.NAMESPACE in environ or environ.get('REMOTE_ADDR'):
        return False
    return not any(header_names.is_reserved_key(key) for key in environ)


@runtime_checkable
class RecordsResults(Protocol):
    """A filter that records whether the services responded to the last requests."""

    last_results: dict[str, tuple[float, bool]]
    """Name of a service -> (time of the last result, whether the service responded)."""


def share_results(links: Iterable[object]) -> None:
    """Give all filters of ``links`` that record results one record: ``links`` are all filters of a worker."""
    record: dict[str, tuple[float, bool]] = {}
    for link in links:
        if isinstance(link, RecordsResults):
            link.last_results = record


class StatusRecorder:
    """A ``start_response`` that records the status: three digits, '' until the response starts."""

    def __init__(self, start_response: StartResponse) -> None:
        self.status = ''
        self._start_response = start_response

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        """Record the status and call the server's ``start_response``."""
        self.status = status[:3]
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)  # type: ignore[arg-type]
