# SPDX-License-Identifier: Apache-2.0
"""The identity of a namespace proxy's workers if no option sets it: a user that may connect to the agent.

An L3 agent of Grizzly passes no user to a namespace proxy. It may start the proxy before or after the metadata agent.
The proxy does not read the agent's options (``metadata_proxy_user``, ``metadata_proxy_group``,
``metadata_proxy_socket_mode``), but owner, group and mode of the agent's socket depend on them. Until an agent listens
on the socket, workers run as the default user. After that they run as a user or group that may connect. If the agent is
restarted with other options, the identity changes. While the agent is stopped, the identity does not change.

==========================  =============================================================================
users that may connect      identity of the workers
==========================  =============================================================================
every user                  the default user
a group                     the default user with this group, because the owner may have other privileges
the owner                   the owner
only root                   the default user, which cannot connect: clients get 503
==========================  =============================================================================

Workers parse client data, so they never run as root. Even without capabilities, uid 0 may write to root's files. The
workers cannot connect if only root may connect, or if they may not enter the directory of the socket. Then an error in
the log names the option or the mode to change. A socket on which no process listens is ignored: it may be stale, or the
agent has not set its owner and group yet.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import socket
import stat
from dataclasses import replace

from metadata_wsgi import safe_files
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges.identity import Identity

LOG = logging.getLogger(__name__)


class IdentityFromSocket:
    """Returns the identity for new workers. A call is fast: the identity is cached until the socket file changes.

    ``default`` is the identity until an agent listens on ``path``. It is also used if every user may connect.
    """

    def __init__(self, path: str, default: Identity) -> None:
        # A daemon changes its working directory.
        self._path = os.path.abspath(path)
        self._default = default
        self._current = default
        self._last_stat: tuple[int, ...] = ()

    def __call__(self) -> Identity:
        """The identity for new workers."""
        found = self._stat()
        if found is None:
            return self._current
        changed = (found.st_dev, found.st_ino, found.st_ctime_ns)
        # _is_live connects, and the agent must accept the connection. So call it only if the socket file has changed.
        if changed != self._last_stat and stat.S_ISSOCK(found.st_mode) and _is_live(self._path):
            self._last_stat = changed
            self._current = self._required_identity(found)
        return self._current

    def _stat(self) -> os.stat_result | None:
        """The stat result of the socket; None if it does not exist.

        Symbolic links are not followed, because the target may have a privileged group, for example docker.
        """
        directory, name = os.path.split(self._path)
        try:
            dir_fd = safe_files.open_directory(directory)
        except OSError:
            return None
        try:
            return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(dir_fd)

    def _required_identity(self, found: os.stat_result) -> Identity:
        """The identity for the workers. Logs an error if this identity cannot connect to the socket."""
        wanted = _who_may_connect(found, self._default)
        directory = os.path.dirname(self._path)
        if wanted is None:
            LOG.error(
                'Clients will get 503: only root may connect to %s, and this program never serves as root; '
                'set metadata_proxy_user or metadata_proxy_group of the agent to another user or group',
                self._path,
            )
            return self._default
        if not identity.can_traverse(wanted, directory):
            LOG.error(
                "Clients will get 503: the user %s may not enter %s, the directory of the agent's socket; "
                'allow it (chmod o+x), or set metadata_proxy_user of the agent to a user that may',
                wanted.name,
                directory,
            )
        return wanted


def _who_may_connect(found: os.stat_result, default: Identity) -> Identity | None:
    """An identity that may connect to the socket; None if only root may connect."""
    if found.st_mode & stat.S_IWOTH:
        return default
    if found.st_mode & stat.S_IWGRP and found.st_gid:
        return replace(default, gid=found.st_gid)
    if not found.st_uid:
        return None
    try:
        entry = pwd.getpwuid(found.st_uid)
    except KeyError:
        return Identity(found.st_uid, found.st_gid or default.gid, str(found.st_uid))
    return Identity(found.st_uid, found.st_gid or entry.pw_gid, entry.pw_name)


def _is_live(path: str) -> bool:
    """Whether a process listens on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        # EAGAIN: a process listens, and its accept queue is full.
        return probe.connect_ex(path) in (0, errno.EAGAIN)
