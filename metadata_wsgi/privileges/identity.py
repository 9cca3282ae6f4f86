# SPDX-License-Identifier: Apache-2.0
"""The user and group of the workers.

The agent's options are ``metadata_user`` and ``metadata_group``. The namespace proxy has ``--metadata_proxy_user`` and
``--metadata_proxy_group``. If root starts the program, the default user is ``metadata-wsgi`` (``useradd --system
metadata-wsgi``), or ``nobody`` if there is no such user. ``nobody`` has few privileges on the host, but other programs
run as nobody too. If another user starts the program, the workers keep this user.

The workers' user must be able to read the CA certificates, and the client certificate and key for Keystone and Neutron,
because the HTTP library opens them for each new connection. With the lookup ``static`` it must also be able to read the
inventory, because a worker reads the inventory again after a change. Workers read configuration files, secrets and the
other keys before they change their user.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass, replace

from metadata_wsgi.errors import ConfigError

DEFAULT_USERS = ('metadata-wsgi', 'nobody')


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and group: numbers for the kernel, a name for the log. ``groups`` are the supplementary groups."""

    uid: int
    gid: int
    name: str
    groups: tuple[int, ...] = ()


def default_identity() -> Identity:
    """The user and group of the workers if no option is set."""
    for name in DEFAULT_USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(found.pw_uid, found.pw_gid, name)
    return Identity(65534, 65534, '65534')


def resolve(user: str, group: str, *, options: tuple[str, str] = ('metadata_user', 'metadata_group')) -> Identity:
    """The identity of ``user`` and ``group``, each a name or a number.

    If ``user`` is '', the default user is used. If ``group`` is '', the user's primary group is used. Raises
    ConfigError if there is no such user or group. The error text names the two ``options``.
    """
    found = default_identity()
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


def resolve_workers(
    user: str, group: str, *, options: tuple[str, str] = ('metadata_user', 'metadata_group')
) -> Identity | None:
    """The identity to which the workers of this process switch; None if they keep their user.

    Workers keep their user if root did not start this process. They also keep it in a user namespace without the
    default user: root of such a namespace is an ordinary user of the host. Raises ConfigError, for example if the
    configured user is root.
    """
    wanted = resolve(user, group, options=options)
    if os.geteuid() != 0:
        if user and wanted.uid != os.geteuid():
            raise ConfigError(f'{options[0]} = {user}: only root can start workers as another user')
        return None
    if wanted.uid == 0:
        raise ConfigError(f'{options[0]} = {user}: workers parse client data and never run as root; name another user')
    if not (_is_mapped('uid', wanted.uid) and _is_mapped('gid', wanted.gid)):
        if user or group:
            raise ConfigError(f'{options[0]} = {user or wanted.name}: this user namespace has no such number')
        return None
    return wanted


def can_traverse(identity: Identity, directory: str) -> bool:
    """Whether the mode bits allow ``identity`` to search ``directory`` and all directories above it."""
    while True:
        try:
            found = os.stat(directory)
        except OSError:
            return True  # the directory does not exist; this package will create it with mode 0755
        if found.st_uid == identity.uid:
            bit = stat.S_IXUSR
        elif found.st_gid in (identity.gid, *identity.groups):
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
