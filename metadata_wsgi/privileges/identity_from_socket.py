# SPDX-License-Identifier: Apache-2.0
"""Whom a namespace proxy becomes that was told nothing: whoever may connect to the agent's socket.

An L3 agent of Grizzly tells a namespace proxy nothing, and may start it before the agent or after. The socket alone
knows what the agent was told (``metadata_proxy_user``, ``metadata_proxy_group``, ``metadata_proxy_socket_mode``), so
it is followed: until an agent has listened there, workers are the usual user; from then on whom the socket lets in,
also when the agent is started again with other options. While the agent is away they stay who they are.

========================  =====================================================================
the socket lets in        and the workers become
========================  =====================================================================
everybody                 the usual user
a group                   the usual user with that group: the owner may have more to lose
its owner                 the owner
only root                 root without capabilities, with a warning
========================  =====================================================================

Root without capabilities, with a warning, too where they could not pass through a directory above root's socket. They
are never root for a socket on which nobody listens: between bind and chown it is root's, and one left behind is
nobody's.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import socket
import stat
from dataclasses import replace

from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges.identity import ROOT, Identity

LOG = logging.getLogger(__name__)


class Following:
    """Call it for the identity of workers that are made now, as often as you like: it asks again what may have changed.

    ``usual`` is whom they are before an agent listened on ``path``, and if everybody may connect.
    """

    def __init__(self, path: str, usual: Identity) -> None:
        # A daemon leaves the directory that it was started in.
        self._path = os.path.abspath(path)
        self._usual = usual
        self._now = usual
        self._seen: tuple[int, ...] = ()

    def __call__(self) -> Identity:
        """Whom workers become now."""
        try:
            found = os.stat(self._path)
        except OSError:
            return self._now
        marks = (found.st_dev, found.st_ino, found.st_ctime_ns)
        # A connection only for a socket that was not seen before: the agent notices each.
        if marks != self._seen and stat.S_ISSOCK(found.st_mode) and _is_living(self._path):
            self._seen = marks
            self._now = self._reaching(found)
        return self._now

    def _reaching(self, found: os.stat_result) -> Identity:
        """Whom it takes to reach that socket, with a warning where that is root."""
        wanted = _let_in(found, self._usual)
        directory = os.path.dirname(self._path)
        if wanted == ROOT:
            LOG.warning(
                'Serving as root, without capabilities: only root may connect to %s; '
                'set metadata_proxy_user or metadata_proxy_group of the agent to another',
                self._path,
            )
        elif not identity.may_enter(wanted, directory):
            become = ROOT if found.st_uid == 0 else wanted
            LOG.warning(
                '%s: %s may not enter %s, where the agent is; '
                'open it to pass through (chmod o+x) or name metadata_proxy_user',
                'Serving as root, without capabilities' if become == ROOT else 'Guests will be answered 503',
                wanted.name,
                directory,
            )
            return become
        return wanted


def _let_in(found: os.stat_result, usual: Identity) -> Identity:
    if found.st_mode & stat.S_IWOTH:
        return usual
    if found.st_mode & stat.S_IWGRP and found.st_gid:
        return replace(usual, gid=found.st_gid)
    if not found.st_uid:
        return ROOT
    try:
        entry = pwd.getpwuid(found.st_uid)
    except KeyError:
        return Identity(found.st_uid, found.st_gid or usual.gid, str(found.st_uid))
    return Identity(found.st_uid, found.st_gid or entry.pw_gid, entry.pw_name)


def _is_living(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        # EAGAIN is a living one with a full queue.
        return probe.connect_ex(path) in (0, errno.EAGAIN)
