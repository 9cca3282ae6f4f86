# SPDX-License-Identifier: Apache-2.0
"""Hides paths of the metadata tree, always or from some time after the creation of an instance. Off by default.

The first rule that matches decides. If no rule matches, the request passes. Each rule is a line
``rule = ACTION METHOD PATTERN [after MINUTES]``::

    [path_policy]
    rule = hide GET /openstack/*/user_data after 60
    rule = hide GET /*/user-data after 60
    rule = allow GET /openstack
    rule = hide * /

ACTION   ``hide`` (404, as for a path that does not exist) or ``allow``.
METHOD   ``GET``: all reads, with any method, because Nova treats a DELETE or a POST on an ordinary path as a GET;
         ``POST``: the only write, a POST to ``password``; ``*``: both.
PATTERN  a path and all paths beneath it. ``*`` matches any characters of one path segment. ``/ec2/...`` is the same as
         ``/...``.
after    the rule applies only if the instance's port was created at least so many minutes ago. If the creation time is
         unknown, the rule applies.

The filter compares paths in the form that Nova uses: decoded once, and without ``//``, ``.``, ``..`` and a slash at the
end. So another spelling of a path does not bypass a rule. A target with ``#`` gets 400, because servers interpret it
differently, and no usual client sends it.

A listing still shows the names of hidden paths. If one listed leaf of ``/latest/meta-data/`` gets 404, cloud-init drops
all EC2 metadata. So hide ``user-data`` and whole trees, not leaves. If a rule with ``after`` hides the user-data, an
instance gets no user-data when it is rebuilt or first boots after this time. The filter must be after ``instance``. It
reads INSTANCE.
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
        'hide GET /openstack/*/user_data after 60. The first rule that matches decides. If none matches, the request '
        'passes.',
    ),
]

_RULE = re.compile(r'(allow|hide)\s+(GET|POST|\*)\s+(/\S*)(?:\s+after\s+([0-9]{1,7}))?')


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``pattern`` matches normalized paths. The rule applies to ports that are at least ``after_s`` old."""

    allow: bool
    method: str
    pattern: re.Pattern[str]
    after_s: float = 0.0

    def matches(self, method: str, path: str, age_s: float) -> bool:
        """Whether the rule applies to the normalized ``path`` for a port that is ``age_s`` seconds old."""
        return self.method in ('*', method) and age_s >= self.after_s and bool(self.pattern.match(path))


def parse(line: str) -> Rule:
    """The rule in a line of the configuration. Raises ConfigError if the line is malformed."""
    words = _RULE.fullmatch(line.strip())
    if not words:
        raise ConfigError(
            f'rule = {line} in [{GROUP}]: write ACTION METHOD PATTERN [after MINUTES], '
            'for example: hide GET /openstack/*/user_data after 60'
        )
    action, method, pattern, minutes = words.groups()
    parts = (re.escape(part).replace(r'\*', '[^/]*') for part in normalize(pattern).split('/'))
    compiled = re.compile('/'.join(parts).rstrip('/') + '(?:/|$)', re.DOTALL)
    return Rule(action == 'allow', method, compiled, 60.0 * int(minutes or 0))


def normalize(path: str) -> str:
    """A decoded path in Nova's form: ``//``, ``.`` and ``..`` resolved, no slash at the end, no ``/ec2`` in front."""
    path = posixpath.normpath('/' + path.lstrip('/'))
    return '/' + path[5:] if path == '/ec2' or path.startswith('/ec2/') else path


class PathPolicyFilter:
    """Responds 404 to paths that ``rules`` hide. ``clock`` is the wall clock, as in a port's creation time."""

    REQUIRES = frozenset({environ_keys.INSTANCE})
    PROVIDES: frozenset[str] = frozenset()

    def __init__(self, app: WSGIApplication, *, rules: Sequence[Rule], clock: Callable[[], float] = time.time) -> None:
        self.app = app
        self._rules = tuple(rules)
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the next filter, or respond 404 to a hidden path, or 400 to a target with #."""
        try:
            target = message.target(environ)
            if '#' in target:
                raise BadRequest('The request target has a #.')
        except BadRequest as error:
            return error_responses.bad_request(str(error))(environ, start_response)
        path = normalize(unquote_to_bytes(target.partition('?')[0].encode('latin-1')).decode('latin-1'))
        is_write = environ['REQUEST_METHOD'] == 'POST' and path.endswith('/password')
        created_at_s = environ[environ_keys.INSTANCE].created_at_s
        age_s = float('inf') if created_at_s is None else self._clock() - created_at_s
        for rule in self._rules:
            if rule.matches('POST' if is_write else 'GET', path, age_s):
                if rule.allow:
                    return self.app(environ, start_response)
                environ[environ_keys.FAILURE] = environ_keys.Failure(404, 'hidden by path_policy')
                return error_responses.not_found()(environ, start_response)
        return self.app(environ, start_response)


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], PathPolicyFilter]:
    """For ``use = egg:metadata_wsgi#path_policy``."""
    rules = [parse(line) for line in config_files.load(global_conf, OPTS, GROUP).path_policy.rule]
    return lambda app: PathPolicyFilter(app, rules=rules)
