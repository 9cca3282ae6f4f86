# SPDX-License-Identifier: Apache-2.0
"""Let only those users speak to the agent who may say who a guest is. Stands before ``source``.

Whoever reaches the agent's socket can ask as any guest. The socket's mode keeps strangers out; this asks the
kernel besides who connected (SO_PEERCRED, nothing a client says), so that a socket opened too wide, or a
user who was put in its group for another reason, is not enough. Anybody else hears 403, and one line in the
log says who it was.

May pass: root, the agent's own users, ``metadata_proxy_user``, and who has the socket's group as its first group;
and those whom ``metadata_peer_users`` and ``metadata_peer_groups`` name. With ``metadata_proxy_socket_mode = all``
and none named: everybody, as that says.

Needs a server of gunicorn's, which shows the connection. Called without one (webtest and ``explain`` say so
with paste's own ``paste.testing``) it passes; under a server that hides it, or over TCP, it refuses.
Reads and establishes nothing.
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
from metadata_wsgi.privileges import identity
from metadata_wsgi.throttle import Throttle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.ListOpt(
        'metadata_peer_users',
        default=[],
        help='Users, by name or uid, that may speak to the agent besides root, its own and metadata_proxy_user.',
    ),
    cfg.ListOpt(
        'metadata_peer_groups',
        default=[],
        help="Groups, by name or gid, whose users may: those that have one as their first group, besides the socket's.",
    ),
]


class PeerCredentialsFilter:
    """Refuses connections of other users; ``uids`` and ``gids`` None: nobody is refused."""

    REQUIRES: frozenset[str] = frozenset()
    PROVIDES: frozenset[str] = frozenset()

    def __init__(
        self, app: WSGIApplication, *, uids: frozenset[int] | None, gids: frozenset[int] | None = frozenset()
    ) -> None:
        self.app = app
        self._uids = uids
        self._gids = gids or frozenset()
        self._seldom = Throttle(limits.LOG_INTERVAL_S)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Go on, or 403."""
        if self._uids is None or environ.get('paste.testing'):
            return self.app(environ, start_response)
        peer = _peer(environ.get('gunicorn.socket'))
        if peer is not None and (peer[1] in self._uids or peer[2] in self._gids):
            return self.app(environ, start_response)
        if self._seldom.allow():
            who = 'who hides behind TCP or this server'
            if peer is not None:
                who = f'process {peer[0]} of uid {peer[1]}, gid {peer[2]}'
            LOG.warning(
                'Refused %s: only namespace proxies may speak to the agent; metadata_proxy_user and '
                'metadata_peer_users say whose',
                who,
            )
        return error_responses.forbidden('Only namespace proxies may ask here.')(environ, start_response)


def _peer(connection: Any) -> tuple[int, int, int] | None:
    """(pid, uid, gid) of who connected, None where that is not known."""
    if getattr(connection, 'family', None) != socket.AF_UNIX:
        return None
    try:
        pid, uid, gid = struct.unpack('3i', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return None
    return pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF


def filter_factory(global_conf: Mapping[str, str]) -> Callable[[WSGIApplication], PeerCredentialsFilter]:
    """For ``use = egg:metadata_wsgi#peer_credentials``."""
    conf = config_files.load(global_conf, [*OPTS, *listeners.OPTS, *identity.OPTS])
    if conf.metadata_proxy_socket_mode == 'all' and not conf.metadata_peer_users and not conf.metadata_peer_groups:
        return lambda app: PeerCredentialsFilter(app, uids=None)
    workers = identity.resolve(conf.metadata_user, conf.metadata_group)
    # The socket's group where the options leave it open, as the agent makes it.
    group = workers.gid if os.geteuid() == 0 else os.getegid()
    uids = {0, os.geteuid(), workers.uid, *map(listeners.uid_of, [conf.metadata_proxy_user, *conf.metadata_peer_users])}
    gids = {listeners.gid_of(name) for name in [conf.metadata_proxy_group or str(group), *conf.metadata_peer_groups]}
    return lambda app: PeerCredentialsFilter(app, uids=frozenset(uids), gids=frozenset(gids))
