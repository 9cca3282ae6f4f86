# SPDX-License-Identifier: Apache-2.0
"""Open the listening sockets: the agent's unix socket, and the namespace proxy's TCP port.

The agent is reachable only over its unix socket, so its permissions are never wider than configured: it is created
for its owner alone, and opened to others after owner and group are set. ``metadata_proxy_socket_mode`` selects who
may connect:

``user``    the owner, ``metadata_proxy_user``
``group``   owner and group, ``metadata_proxy_group``
``all``     every user of the host: then each of them can request the metadata of any instance
``deduce``  ``user`` if only ``metadata_proxy_user`` is set, else ``group``

If neither user nor group is set and root starts the agent, the group is that of the agent's workers
(``privileges.identity``): by default the namespace proxies' workers have the same.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import pwd
import resource
import socket
import stat
import time
from collections.abc import Callable, Sequence

from oslo_config import cfg

from metadata_wsgi.errors import ConfigError

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.StrOpt(
        'metadata_proxy_socket_mode',
        default='deduce',
        choices=['deduce', 'user', 'group', 'all'],
        help='Who may connect to the socket: the owner, its group too, everybody; deduced from the two options below.',
    ),
    cfg.StrOpt(
        'metadata_proxy_user', default='', help='Owner of the socket, a name or uid: the user of the namespace proxies.'
    ),
    cfg.StrOpt('metadata_proxy_group', default='', help='Group of the socket, a name or gid.'),
]

IPV6_FREEBIND = 78  # <linux/in6.h>, Linux 4.15; the socket module has no name for it
MODE_BITS = {'user': 0o600, 'group': 0o660, 'all': 0o666}


def socket_mode(name: str, user: str, group: str) -> int:
    """The permission bits for ``metadata_proxy_socket_mode = name``. Connecting takes the write bit."""
    if name == 'deduce':
        name = 'user' if user and not group else 'group'
    return MODE_BITS[name]


def unix_listener(
    path: str,
    *,
    mode: int,
    user: str = '',
    group: str = '',
    backlog: int = 4096,
    kind: int = socket.SOCK_STREAM,
    timeout_s: float = 3.0,
    sleep: Callable[[float], None] = time.sleep,
) -> socket.socket:
    """Listen on ``path``. A stale socket is replaced. Raises ConfigError if another process listens on it.

    Such a socket is checked again for ``timeout_s``: the workers of an agent whose master was killed take a second to
    notice and end.
    """
    uid, gid = uid_of(user), gid_of(group)
    try:
        os.makedirs(os.path.dirname(path) or '.', mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'metadata_proxy_socket = {path}: its directory cannot be made: {error.strerror}') from error
    give_up_at = time.monotonic() + timeout_s
    while not _remove_stale(path, kind):
        if time.monotonic() >= give_up_at:
            raise ConfigError(
                f'metadata_proxy_socket = {path}: another agent is running and listens there; '
                'stop it first, or name another path'
            )
        sleep(0.2)
    listener = socket.socket(socket.AF_UNIX, kind)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        os.chown(path, uid, gid)
        os.chmod(path, mode)
    except OSError as error:
        listener.close()
        raise ConfigError(f'metadata_proxy_socket = {path}: {error.strerror or error}') from error
    finally:
        os.umask(before)
    listener.listen(backlog)
    return listener


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one: a thousand routers need more descriptors than a login shell's limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tcp_listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on each of ``hosts``. Raises ConfigError if the first fails; logs a warning for each other that fails.

    The first is the IPv4 address, which is served also if IPv6 is disabled or an interface is missing.
    """
    listeners = [tcp_listener(hosts[0], port)]
    for host in hosts[1:]:
        try:
            # The first call has waited for a former process of both.
            listeners.append(tcp_listener(host, port, timeout_s=1.0))
        except ConfigError as error:
            LOG.warning('Serving %s only: %s', hosts[0], error)
    return listeners


def tcp_listener(
    host: str, port: int, *, backlog: int = 4096, timeout_s: float = 30.0, sleep: Callable[[float], None] = time.sleep
) -> socket.socket:
    """Listen on ``host`` (empty: every address of the namespace, both families) and ``port``.

    While the port is in use it is retried for ``timeout_s``: a former proxy may be about to end. An IPv6 address may
    have a zone (``fe80::a9fe:a9fe%qr-1``); such an address need not be usable yet (duplicate address detection takes
    seconds) and may disappear and come back. Raises ConfigError.
    """
    give_up_at = time.monotonic() + timeout_s
    while True:
        try:
            return _bind_and_listen(host, port, backlog)
        except OSError as error:
            retry = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) and time.monotonic() < give_up_at
            if not retry:
                where = f'[{host}]:{port}' if ':' in host else f'{host or "any address"} port {port}'
                raise ConfigError(f'metadata_port: cannot listen on {where}: {error.strerror or error}') from error
        sleep(0.2)


def _bind_and_listen(host: str, port: int, backlog: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(
        host or '::', port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )[0]
    if not host and not _has_ipv6():
        family, address = socket.AF_INET, ('0.0.0.0', port)  # noqa: S104 (iptables rules limit who may connect)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # As Grizzly: a client that disappeared without FIN is noticed after 10 minutes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 600)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(host)))
            if '%' in host:
                listener.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _remove_stale(path: str, kind: int) -> bool:
    """Remove a socket on which no process listens; whether the path is free now."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise ConfigError(f'metadata_proxy_socket = {path}: {error.strerror}') from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f'metadata_proxy_socket = {path}: is there and is no socket; name another path or remove it')
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return True
        except OSError as error:
            # EAGAIN: a live one whose accept queue is full.
            if error.errno != errno.EAGAIN:
                raise ConfigError(f'metadata_proxy_socket = {path}: {error.strerror}') from error
    return False


def uid_of(user: str) -> int:
    """The number of ``metadata_proxy_user``, -1 for ''. Raises ConfigError."""
    if not user:
        return -1
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f'metadata_proxy_user = {user}: there is no such user') from None


def gid_of(group: str) -> int:
    """The number of ``metadata_proxy_group``, -1 for ''. Raises ConfigError."""
    if not group:
        return -1
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f'metadata_proxy_group = {group}: there is no such group') from None
