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

from metadata_wsgi import answers, config, context, directories
from metadata_wsgi.errors import DirectoryError, DirectoryUnavailable
from metadata_wsgi.patience import insist
from metadata_wsgi.seldom import Seldom

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

    REQUIRES = frozenset({context.SOURCE, context.DEADLINE})
    PROVIDES = frozenset({context.INSTANCE})

    def __init__(
        self, app: WSGIApplication, *, directory: directories.Directory, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.app = app
        self.directory = directory
        self._sleep = sleep
        self._seldom = Seldom(60)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Write the instance down and go on, or answer 404 or 503."""
        if context.INSTANCE in environ:
            return self.app(environ, start_response)
        source: context.Source = environ[context.SOURCE]
        try:
            found = self._find(source, environ[context.DEADLINE])
        except DirectoryError as error:
            if self._seldom.due():
                LOG.error('Guests are answered 503: cannot find out who is at %s: %s', source, error)
            return answers.unavailable()(environ, start_response)
        if len(found) != 1:
            if found:
                LOG.warning('%d instances fit %s, so none is told: ports %s', len(found), source, _ports(found))
            else:
                LOG.info('No instance is at %s', source)
            return answers.no_instance()(environ, start_response)
        environ[context.INSTANCE] = found[0]
        return self.app(environ, start_response)

    def _find(self, source: context.Source, deadline: context.Deadline) -> Sequence[context.Instance]:
        return insist(
            lambda: self.directory.find(source, deadline.share(2 / 3)),
            deadline,
            again_after=(DirectoryUnavailable,),
            sleep=self._sleep,
        )


def _ports(found: Sequence[context.Instance]) -> str:
    return ', '.join(sorted(f'{i.port_id} (instance {i.instance_id}, project {i.project_id})' for i in found))


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], InstanceFilter]:
    """For ``use = egg:metadata_wsgi#instance``."""
    conf = config.load(global_conf, OPTS)
    directory = directories.load(conf.directory, global_conf)
    return lambda app: InstanceFilter(app, directory=directory)
