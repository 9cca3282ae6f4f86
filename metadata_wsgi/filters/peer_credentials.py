# SPDX-License-Identifier: Apache-2.0
"""Accepts only namespace proxies as peers on the agent's socket. This filter must be before ``header_source``.

A process that can connect to the agent's socket can request the metadata of any instance. The file mode of the socket
excludes other users. In addition this filter checks uid and gid of the peer, which the kernel returns (SO_PEERCRED). So
metadata stays protected if the socket has a wrong mode, or if users of other programs have its group as a supplementary
group. A refused peer gets 403, and the log names its uid.

The following peers are accepted:

- root, and the users of the agent's master and workers. Exception: if there is no user metadata-wsgi, workers run as
  ``nobody``, which is not accepted, because other programs also run as this user;
- ``metadata_proxy_user``, and users with the socket's group as primary group;
- the users of ``metadata_peer_users``, and users with a primary group of ``metadata_peer_groups``;
- all users, if ``metadata_proxy_socket_mode = all`` and neither ``metadata_peer_users`` nor ``metadata_peer_groups`` is
  set.

The filter needs gunicorn, because it reads the connection from the key ``gunicorn.socket``. Under another server, or
over TCP, it refuses all requests. If the key ``paste.testing`` is set, all requests pass: webtest and ``explain`` set
this key and have no connection. The filter reads and writes no environ key of this package.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.config import config_files
from metadata_wsgi.http import error_responses
from metadata_wsgi.net import listeners
from metadata_wsgi.net import options as net_options
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges import options as privileges_options
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.ListOpt(
        'metadata_peer_users',
        default=[],
        help="Other users, by name or uid, that may connect to the agent's socket.",
    ),
    cfg.ListOpt(
        'metadata_peer_groups',
        default=[],
        help="Other groups, by name or gid: processes with such a primary group may connect to the agent's socket.",
    ),
]


_SHARED_USERS = frozenset({'nobody', '65534'})
"""Name and uid of the user as which workers run if there is no user metadata-wsgi. Other programs use it too."""


class PeerCredentialsFilter:
    """Accepts peers with a uid in ``uids`` or a primary gid in ``gids``; all if ``uids`` is None. Others get 403."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self, app: WSGIApplication, *, uids: frozenset[int] | None, gids: frozenset[int] | None = frozenset()
    ) -> None:
        self.app = app
        self._uids = uids
        self._gids = gids or frozenset()
        self._refused_log = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the next filter, or respond 403."""
        if self._uids is None or environ.get('paste.testing'):
            return self.app(environ, start_response)
        peer = _peer(environ.get('gunicorn.socket'))
        if peer is not None and (peer[1] in self._uids or peer[2] in self._gids):
            return self.app(environ, start_response)
        if self._refused_log.allow():
            description = 'an unknown process (TCP, or a server that hides the connection)'
            if peer is not None:
                description = f'process {peer[0]} of uid {peer[1]}, gid {peer[2]}'
            LOG.warning(
                'Refused %s: only namespace proxies may connect to the agent. Set metadata_proxy_user or '
                'metadata_peer_users to their user. If they run as nobody, create the user metadata-wsgi for them '
                '(useradd --system metadata-wsgi), because other programs run as nobody too',
                description,
            )
        uid = 'unknown' if peer is None else peer[1]
        environ[environ_keys.FAILURE] = environ_keys.Failure(403, f'the peer, uid {uid}, is no namespace proxy')
        return error_responses.forbidden('Only namespace proxies may connect here.')(environ, start_response)


def _peer(connection: Any) -> tuple[int, int, int] | None:
    """(pid, uid, gid) of the peer of a unix socket; None if they are not known."""
    if getattr(connection, 'family', None) != socket.AF_UNIX:
        return None
    try:
        pid, uid, gid = struct.unpack('3i', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return None
    return pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], PeerCredentialsFilter]:
    """For ``use = egg:metadata_wsgi#peer_credentials``."""
    conf = config_files.load(global_conf, [*OPTS, *net_options.OPTS, *privileges_options.OPTS])
    if conf.metadata_proxy_socket_mode == 'all' and not conf.metadata_peer_users and not conf.metadata_peer_groups:
        return lambda app: PeerCredentialsFilter(app, uids=None)
    uids, gids = accepted_ids(conf, identity.resolve(conf.metadata_user, conf.metadata_group))
    return lambda app: PeerCredentialsFilter(app, uids=uids, gids=gids)


def accepted_ids(conf: Any, workers: identity.Identity) -> tuple[frozenset[int], frozenset[int]]:
    """The accepted uids and primary gids, for an agent whose workers run as ``workers``."""
    # Without an option the socket's group is the workers' group if root runs the agent, else the agent's own group.
    group = workers.gid if os.geteuid() == 0 else os.getegid()
    uids = {0, os.geteuid(), workers.uid}
    gids = {listeners.gid_of(conf.metadata_proxy_group or str(group))}
    if workers.name in _SHARED_USERS and not conf.metadata_user:
        uids -= {workers.uid} - {os.geteuid()}
        if not conf.metadata_group and not conf.metadata_proxy_group:
            gids -= {workers.gid}
    uids |= {listeners.uid_of(name) for name in [conf.metadata_proxy_user, *conf.metadata_peer_users] if name}
    gids |= {listeners.gid_of(name) for name in conf.metadata_peer_groups}
    return frozenset(uids), frozenset(gids)
