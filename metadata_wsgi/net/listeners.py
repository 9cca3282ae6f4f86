# SPDX-License-Identifier: Apache-2.0
"""Open the listening sockets: the agent's unix socket, and the namespace proxy's TCP port.

The unix socket is the only door to the agent, so it is never open to more than it should be: it is
made for its owner alone, and opened to others after its owner and group are right.
``metadata_proxy_socket_mode`` says to whom:

``user``    the owner, ``metadata_proxy_user``
``group``   owner and group, ``metadata_proxy_group``
``all``     every user of the host: then every one of them can ask as any guest
``deduce``  ``user`` where only ``metadata_proxy_user`` is set, else ``group``

Where neither user nor group is set and root starts the agent, the group is that of the agent's workers
(``confinement.identity``), which the namespace proxies, told nothing, become too.
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
        'metadata_proxy_user', default='', help='Owner of the socket, a name or uid: whom the namespace proxies run as.'
    ),
    cfg.StrOpt('metadata_proxy_group', default='', help='Group of the socket, a name or gid.'),
]

IPV6_FREEBIND = 78  # <linux/in6.h>, Linux 4.15; the socket module has no name for it
MODES = {'user': 0o600, 'group': 0o660, 'all': 0o666}


def mode(name: str, user: str, group: str) -> int:
    """The permission bits that ``metadata_proxy_socket_mode`` ``name`` means. Connecting takes the write bit."""
    if name == 'deduce':
        name = 'user' if user and not group else 'group'
    return MODES[name]


def unix_listener(
    path: str,
    *,
    mode: int,
    user: str = '',
    group: str = '',
    backlog: int = 4096,
    kind: int = socket.SOCK_STREAM,
    patience_s: float = 3.0,
    sleep: Callable[[float], None] = time.sleep,
) -> socket.socket:
    """Listen on ``path``; a stale socket is replaced, a living one refused. Raises ConfigError.

    A living one is looked at again for ``patience_s``: the workers of an agent whose master was killed
    need a second to notice.
    """
    uid, gid = uid_of(user), gid_of(group)
    try:
        os.makedirs(os.path.dirname(path) or '.', mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'metadata_proxy_socket = {path}: its directory cannot be made: {error.strerror}') from error
    give_up_at = time.monotonic() + patience_s
    while not _clear(path, kind):
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
    """As far as this process may: a thousand routers are more descriptors than a login shell's limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tcp_listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on each of ``hosts``; ConfigError if the first cannot be had, a warning for each of the others.

    The first is the one that must serve, IPv4; it loses nothing where IPv6 is switched off or an interface missing.
    """
    listeners = [tcp_listener(hosts[0], port)]
    for host in hosts[1:]:
        try:
            # The first one has waited for a predecessor of both.
            listeners.append(tcp_listener(host, port, patience_s=1.0))
        except ConfigError as error:
            LOG.warning('Serving %s only: %s', hosts[0], error)
    return listeners


def tcp_listener(
    host: str, port: int, *, backlog: int = 4096, patience_s: float = 30.0, sleep: Callable[[float], None] = time.sleep
) -> socket.socket:
    """Listen on ``host`` (empty: every address of the namespace, both families) and ``port``.

    A port that is in use is asked for again for ``patience_s``: a predecessor may still be on its way
    out. An IPv6 address may have a zone (``fe80::a9fe:a9fe%qr-1``); such an address need not be there yet, because
    the kernel takes seconds to check it for duplicates, and may come and go. Raises ConfigError.
    """
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            return _bound(host, port, backlog)
        except OSError as error:
            waiting = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) and time.monotonic() < give_up_at
            if not waiting:
                where = f'[{host}]:{port}' if ':' in host else f'{host or "any address"} port {port}'
                raise ConfigError(f'metadata_port: cannot listen on {where}: {error.strerror or error}') from error
        sleep(0.2)


def _bound(host: str, port: int, backlog: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(
        host or '::', port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )[0]
    if not host and not _has_ipv6():
        family, address = socket.AF_INET, ('0.0.0.0', port)  # noqa: S104 (the rules say who may come in)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # As Grizzly: a guest that vanished is noticed after 10 minutes.
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


def _clear(path: str, kind: int) -> bool:
    """Remove a socket on which nobody listens; whether the path is free now."""
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
            # EAGAIN is a living one with a full queue.
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
