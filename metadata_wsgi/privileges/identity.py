# SPDX-License-Identifier: Apache-2.0
"""Whom the workers become: a user, a group, and no other group.

``metadata_user`` and ``metadata_group`` are the agent's; the namespace proxy has two options of its own.
Where they are not set and the program was started by root, it is the user ``metadata-wsgi``, made for
that (``useradd --system metadata-wsgi``), and where there is none, ``nobody``: safe against the host,
but shared with whatever else runs as nobody. A program that root did not start stays who it is.

Nothing that a worker reads later may be closed to that user: the certificate authorities, and the
``static`` inventory where it is to be followed. Configuration files, keys and secrets are read before.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass, replace

from oslo_config import cfg

from metadata_wsgi.errors import ConfigError

OPTS = [
    cfg.StrOpt(
        'metadata_user',
        default='',
        help='Whom the workers of the agent run as, a name or uid, if root starts it. '
        'By default metadata-wsgi, or nobody where there is no such user.',
    ),
    cfg.StrOpt(
        'metadata_group', default='', help="Group of the agent's workers, a name or gid. By default that user's own."
    ),
]

USUAL = ('metadata-wsgi', 'nobody')


@dataclass(frozen=True, slots=True)
class Identity:
    """Numbers for the kernel, a name for the log. ``groups`` are supplementary ones."""

    uid: int
    gid: int
    name: str
    groups: tuple[int, ...] = ()


ROOT = Identity(0, 0, 'root')
"""Without capabilities: what belongs to root it may read, no more."""


def usual() -> Identity:
    """Whom workers become that were told nothing."""
    for name in USUAL:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(found.pw_uid, found.pw_gid, name)
    return Identity(65534, 65534, '65534')


def of(user: str, group: str, *, options: tuple[str, str] = ('metadata_user', 'metadata_group')) -> Identity:
    """The identity of ``user`` and ``group``, each a name, a number or '' (the usual one, that user's own).

    Raises ConfigError that names the one of ``options`` whose value is nobody.
    """
    found = usual()
    if user:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
            found = Identity(entry.pw_uid, entry.pw_gid, entry.pw_name)
        except KeyError:
            if not user.isdecimal():
                raise ConfigError(f'{options[0]} = {user}: there is no such user') from None
            if not group:
                raise ConfigError(f'{options[0]} = {user}: no user has that number; name {options[1]} too') from None
            found = Identity(int(user), 0, user)
    if group:
        try:
            found = replace(found, gid=int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid)
        except KeyError:
            raise ConfigError(f'{options[1]} = {group}: there is no such group') from None
    return found


def of_workers(
    user: str, group: str, *, options: tuple[str, str] = ('metadata_user', 'metadata_group')
) -> Identity | None:
    """Whom the workers of this process become; None: they stay who they are, because root did not start it.

    Also None for the usual identity in a user namespace that has no number for it. Raises ConfigError.
    """
    wanted = of(user, group, options=options)
    if os.geteuid() != 0:
        if user and wanted.uid != os.geteuid():
            raise ConfigError(f'{options[0]} = {user}: only root can start workers as another user')
        return None
    if not (_is_mapped('uid', wanted.uid) and _is_mapped('gid', wanted.gid)):
        if user or group:
            raise ConfigError(f'{options[0]} = {user or wanted.name}: this user namespace has no such number')
        return None
    return wanted


def may_enter(who: Identity, directory: str) -> bool:
    """Whether ``who`` may pass through ``directory`` and all above it, by their mode bits."""
    while True:
        try:
            found = os.stat(directory)
        except OSError:
            return True  # made later, as ours are: open to pass through
        if found.st_uid == who.uid:
            bit = stat.S_IXUSR
        elif found.st_gid in (who.gid, *who.groups):
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not found.st_mode & bit:
            return False
        if directory == os.path.dirname(directory):
            return True
        directory = os.path.dirname(directory)


def _is_mapped(kind: str, number: int) -> bool:
    with open(f'/proc/self/{kind}_map') as mapping:
        for line in mapping:
            first, _, count = (int(word) for word in line.split())
            if first <= number < first + count:
                return True
    return False
