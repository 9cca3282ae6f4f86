# SPDX-License-Identifier: Apache-2.0
"""Say which instance is asking, by asking a directory. Stands after source and deadline.

``directory`` names who knows: ``quantum`` (the Quantum or Neutron API) or ``static`` (a YAML file).

Exactly one instance fits: it is written down. None: 404. Several: 404 too, and a warning in the log
that names the ports, because two tenants' ports cannot be told apart and neither may get the other's
keys. The directory cannot be reached: asked again until the deadline, then 503 with Retry-After,
never 404, which guests take for "no metadata here" and boot bare.

Does nothing where INSTANCE is there already: a cache, a test or another lookup may stand before it.
Reads SOURCE and DEADLINE, establishes INSTANCE.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from oslo_config import cfg

from metadata_wsgi import limits, lookup
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.http import error_responses
from metadata_wsgi.http.retry import retry_until
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.StrOpt(
        'directory',
        default='quantum',
        help='Who finds the instance: quantum, static, or another that is installed as metadata_wsgi.directories.',
    ),
]


class InstanceFilter:
    """Establishes INSTANCE, the one that fits SOURCE."""

    REQUIRES = frozenset({environ_keys.SOURCE, environ_keys.DEADLINE})
    PROVIDES = frozenset({environ_keys.INSTANCE})

    def __init__(
        self, app: WSGIApplication, *, directory: lookup.InstanceLookup, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.app = app
        self.directory = directory
        self._sleep = sleep
        self._seldom = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Write the instance down and go on, or answer 404 or 503."""
        if environ_keys.INSTANCE in environ:
            return self.app(environ, start_response)
        source: environ_keys.Source = environ[environ_keys.SOURCE]
        try:
            found = self._find(source, environ[environ_keys.DEADLINE])
        except InstanceLookupError as error:
            if self._seldom.allow():
                LOG.error('Guests are answered 503: cannot find out who is at %s: %s', source, error)
            return error_responses.unavailable()(environ, start_response)
        if len(found) != 1:
            if found:
                LOG.warning('%d instances fit %s, so none is told: ports %s', len(found), source, _ports(found))
            else:
                LOG.info('No instance is at %s', source)
            return error_responses.instance_not_found()(environ, start_response)
        environ[environ_keys.INSTANCE] = found[0]
        return self.app(environ, start_response)

    def _find(self, source: environ_keys.Source, deadline: Deadline) -> Sequence[environ_keys.Instance]:
        return retry_until(
            lambda: self.directory.find(source, deadline.fraction(2 / 3)),
            deadline,
            retry_on=(LookupUnavailable,),
            sleep=self._sleep,
        )


def _ports(found: Sequence[environ_keys.Instance]) -> str:
    return ', '.join(sorted(f'{i.port_id} (instance {i.instance_id}, project {i.project_id})' for i in found))


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], InstanceFilter]:
    """For ``use = egg:metadata_wsgi#instance``."""
    conf = config_files.load(global_conf, OPTS)
    directory = lookup.load(conf.directory, global_conf)
    return lambda app: InstanceFilter(app, directory=directory)
