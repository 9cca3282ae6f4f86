# SPDX-License-Identifier: Apache-2.0
"""Looks up the instance of a request. This filter must be after header_source or socket_source, and after deadline.

The option ``directory`` names the lookup: ``quantum`` or ``neutron`` (both are Neutron's API), or ``static`` (a YAML
file). If the lookup finds no instance or several, the response is 404. If the lookup fails, the response is 503.
``lookup/request_lookup.py`` lists all cases.

If an earlier filter (lookup_cache, for example) has set INSTANCE, this filter does nothing. It reads SOURCE and
DEADLINE and writes INSTANCE.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import sleep
from metadata_wsgi.lookup import protocol
from metadata_wsgi.lookup.request_lookup import RequestLookup
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OPTS = protocol.OPTS


class InstanceFilter:
    """Sets INSTANCE to the instance that has the address in SOURCE."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.DEADLINE})
    PROVIDES = frozenset({environ_keys.INSTANCE})

    def __init__(
        self,
        app: WSGIApplication,
        *,
        lookup: protocol.InstanceLookup,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self.app = app
        self.lookup = lookup
        self._request_lookup = RequestLookup(lookup, clock=clock, sleep=sleep)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set INSTANCE and call the next filter, or respond 404 or 503."""
        if environ_keys.INSTANCE not in environ:
            error_response = self._request_lookup.set_instance(environ)
            if error_response is not None:
                return error_response(environ, start_response)
        return self.app(environ, start_response)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], InstanceFilter]:
    """For ``use = egg:metadata_wsgi#instance``."""
    conf = config_files.load(global_conf, OPTS)
    lookup = protocol.load(conf.directory, global_conf)
    return lambda app: InstanceFilter(app, lookup=lookup)
