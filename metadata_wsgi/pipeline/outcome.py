# SPDX-License-Identifier: Apache-2.0
"""How far a request came, and what was answered: read off the environ afterwards, for filters that only watch.

Facts are written down on the way in, so which of them are there when the answer comes back says which filter
gave it, and no filter need know that it is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from metadata_wsgi.http import header_names
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

DOOR, SOURCE, INSTANCE, UPSTREAM = 'door', 'source', 'instance', 'upstream'

_SIGNATURE = 'HTTP_' + header_names.SIGNATURE.upper().replace('-', '_')


def reached(environ: WSGIEnvironment) -> str:
    """How far the request came.

    DOOR: nobody found out who asks. SOURCE: that is known, and not which instance it is. INSTANCE: that too, and some
    filter behind answered itself. UPSTREAM: it was signed, and Nova (or its silence) is the answer.
    """
    if environ_keys.SOURCE not in environ:
        return DOOR
    if environ_keys.INSTANCE not in environ:
        return SOURCE
    # A guest's own header of that name is gone by then: source has deleted it.
    return UPSTREAM if _SIGNATURE in environ else INSTANCE


def is_the_hosts_own(environ: WSGIEnvironment) -> bool:
    """Whether the request was made on the host, on the agent's unix socket, and not by a guest.

    What a guest asks comes in on the keeper's socket, or through a namespace proxy, and those always say who asks.
    """
    if environ_keys.NAMESPACE in environ or environ.get('REMOTE_ADDR'):
        return False
    return not any(key.startswith('HTTP_') and header_names.is_reserved(key[5:]) for key in environ)


class Heard:
    """A ``start_response`` that remembers: ``status`` is the three digits, '' as long as nothing was said."""

    def __init__(self, start_response: StartResponse) -> None:
        self.status = ''
        self._start_response = start_response

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        """Remember, and go on."""
        self.status = status[:3]
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)  # type: ignore[arg-type]
