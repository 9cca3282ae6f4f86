# SPDX-License-Identifier: Apache-2.0
"""Hide paths of the metadata tree, from the start or some time after a guest was made. Off by default.

Rules are read from the top, the first that fits decides, and what none fits passes. Each is a line
``rule = ACTION METHOD PATTERN [after MINUTES]``::

    [path_policy]
    rule = hide GET /openstack/*/user_data after 60
    rule = hide GET /*/user-data after 60
    rule = allow GET /openstack
    rule = hide * /

ACTION   ``hide`` (404, as what is not there) or ``allow``.
METHOD   ``GET``: whatever reads, and that is every method, because Nova takes a DELETE or a POST on an ordinary
         path as a GET; ``POST``: the one thing that a guest writes, a POST to ``password``; ``*``: both.
PATTERN  a path, and everything beneath it; ``*`` is any characters of one part. ``/ec2/...`` is the same as ``/...``.
after    the rule begins to hold that many minutes after the guest's port was created. A port whose age the directory
         does not tell is old.

A path is compared as Nova will understand it: decoded once, ``//``, ``.``, ``..`` and a slash at the end resolved, so
that no spelling leads around a rule. A target with ``#``, which no client sends and servers read differently, is 400.

What it breaks: a listing still names what is hidden, and cloud-init gives up all EC2 metadata over one leaf of
``/latest/meta-data/`` that is listed and 404; so hide ``user-data`` and whole trees, not leaves. A guest that is
rebuilt, or boots for the first time later than ``after`` says, finds no user-data. Stands behind ``instance``.
Reads INSTANCE.
"""

from __future__ import annotations

import posixpath
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.errors import BadRequest, ConfigError
from metadata_wsgi.http import error_responses, message
from metadata_wsgi.pipeline import environ_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

GROUP = 'path_policy'
OPTS = [
    cfg.MultiStrOpt(
        'rule',
        default=[],
        help='May be repeated: ACTION METHOD PATTERN [after MINUTES], for example: '
        'hide GET /openstack/*/user_data after 60. The first that fits decides; what none fits passes.',
    ),
]

_RULE = re.compile(r'(allow|hide)\s+(GET|POST|\*)\s+(/\S*)(?:\s+after\s+([0-9]{1,7}))?')


@dataclass(frozen=True, slots=True)
class Rule:
    """``pattern`` is a compiled one of normal paths; ``after_s`` counts from the creation of the port."""

    allow: bool
    method: str
    pattern: re.Pattern[str]
    after_s: float = 0.0

    def fits(self, method: str, path: str, age_s: float) -> bool:
        """Whether the rule decides on ``path`` (a normal one) now."""
        return self.method in ('*', method) and age_s >= self.after_s and bool(self.pattern.match(path))


def parse(line: str) -> Rule:
    """The rule that an operator wrote. Raises ConfigError."""
    words = _RULE.fullmatch(line.strip())
    if not words:
        raise ConfigError(
            f'rule = {line} in [{GROUP}]: write ACTION METHOD PATTERN [after MINUTES], '
            'for example: hide GET /openstack/*/user_data after 60'
        )
    action, method, pattern, minutes = words.groups()
    parts = (re.escape(part).replace(r'\*', '[^/]*') for part in normal(pattern).split('/'))
    compiled = re.compile('/'.join(parts).rstrip('/') + '(?:/|$)', re.DOTALL)
    return Rule(action == 'allow', method, compiled, 60.0 * int(minutes or 0))


def normal(path: str) -> str:
    """A decoded path as Nova reads it: ``//``, ``.``, ``..`` resolved, no slash at the end, no ``ec2`` at the front."""
    path = posixpath.normpath('/' + path.lstrip('/'))
    return '/' + path[5:] if path == '/ec2' or path.startswith('/ec2/') else path


class PathPolicyFilter:
    """404 for what ``rules`` hide. ``clock`` is the wall clock, in which Quantum gives a port's creation."""

    REQUIRES = frozenset({environ_keys.INSTANCE})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, rules: Sequence[Rule], clock: Callable[[], float] = time.time) -> None:
        self.app = app
        self._rules = tuple(rules)
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Hide it or go on."""
        try:
            target = message.target(environ)
            if '#' in target:
                raise BadRequest('The request target has a #.')
        except BadRequest as error:
            return error_responses.bad_request(str(error))(environ, start_response)
        path = normal(unquote_to_bytes(target.partition('?')[0].encode('latin-1')).decode('latin-1'))
        writes = environ['REQUEST_METHOD'] == 'POST' and path.endswith('/password')
        created_at_s = environ[environ_keys.INSTANCE].created_at_s
        age_s = float('inf') if created_at_s is None else self._clock() - created_at_s
        for rule in self._rules:
            if rule.fits('POST' if writes else 'GET', path, age_s):
                return (self.app if rule.allow else error_responses.not_found())(environ, start_response)
        return self.app(environ, start_response)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], PathPolicyFilter]:
    """For ``use = egg:metadata_wsgi#path_policy``."""
    rules = [parse(line) for line in config_files.load(global_conf, OPTS, GROUP).path_policy.rule]
    return lambda app: PathPolicyFilter(app, rules=rules)
