# SPDX-License-Identifier: Apache-2.0
"""Opens the listening sockets: the agent's unix socket, and the namespace proxy's TCP port.

Every process that can connect to the agent's unix socket can request the metadata of any instance. So the permissions
of the socket are never wider than configured. When the socket is created, only the user of this process has access. The
final permissions are set after the group. ``metadata_proxy_socket_mode`` selects which users may connect:

``user``    the owner, ``metadata_proxy_user``
``group``   owner and group, ``metadata_proxy_group``
``all``     every user of the host
``deduce``  ``user`` if only ``metadata_proxy_user`` is set, else ``group``

If neither user nor group is set and root starts the agent, the socket gets the group of the agent's workers
(``privileges.identity``). By default the workers of the namespace proxies have the same group.
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
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from metadata_wsgi import limits, safe_files
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.net import listening_process
from metadata_wsgi.net.listening_process import ListeningProcess

LOG = logging.getLogger(__name__)

IPV6_FREEBIND = 78  # <linux/in6.h>, Linux 4.15; the socket module has no name for it
PROBE_TIMEOUT_S = 1
MODE_BITS = {'user': 0o600, 'group': 0o660, 'all': 0o666}


def socket_mode(name: str, user: str, group: str) -> int:
    """The permission bits for ``metadata_proxy_socket_mode = name``. A user needs the write bit to connect."""
    if name == 'deduce':
        name = 'user' if user and not group else 'group'
    return MODE_BITS[name]


def unix_listener(
    path: str,
    *,
    mode: int,
    user: str = '',
    group: str = '',
    backlog: int = limits.LISTEN_BACKLOG,
    kind: int = socket.SOCK_STREAM,
    timeout_s: float = 3.0,
    option: str = 'metadata_proxy_socket',
    program: str = 'agent',
    sleep: Callable[[float], None] = time.sleep,
) -> socket.socket:
    """Listen on ``path``. A stale socket is replaced. Raises ConfigError if another process listens on ``path``.

    If another process listens, the check is repeated for ``timeout_s``: after an agent's master was killed, its workers
    need a second to end. ``<path>.lock`` is locked during the check and until the socket listens. Without the lock, if
    two processes start at the same time, one could delete the socket of the other between its bind() and listen().
    Error messages contain ``option`` and ``program``.
    """
    path = os.path.abspath(path)
    uid, gid = uid_of(user), gid_of(group)
    directory, name = os.path.split(path)
    try:
        dir_fd = safe_files.open_directory(directory, make=True)
    except OSError as error:
        raise ConfigError(f'{option} = {path}: its directory cannot be made: {error.strerror}') from error
    give_up_at = time.monotonic() + timeout_s
    try:
        while True:
            try:
                with _lock(f'{name}.lock', dir_fd):
                    if _remove_stale(path, name, dir_fd, kind, option):
                        return _bind_unix(path, name, dir_fd, kind, mode, uid, gid, backlog)
            except BlockingIOError:
                # Another process is between bind() and listen(), which takes milliseconds.
                pass
            except OSError as error:
                raise ConfigError(f'{option} = {path}: {error.strerror or error}') from error
            if time.monotonic() >= give_up_at:
                raise ConfigError(
                    f'{option} = {path}: another {program} is running and listens there; '
                    'stop it first, or name another path'
                )
            sleep(0.2)
    finally:
        os.close(dir_fd)


def keep_unix_listener(
    sock: socket.socket,
    path: str,
    *,
    mode: int,
    user: str = '',
    group: str = '',
    backlog: int = limits.LISTEN_BACKLOG,
) -> bool:
    """Use the listener ``sock`` of a former process again. Returns False if it does not listen on ``path``.

    The file of the socket gets the mode and owner that ``unix_listener`` would set. Also returns False if they must
    be changed and this fails, or if they must be changed and the file is another program's socket.
    """
    uid, gid = uid_of(user), gid_of(group)
    try:
        if sock.getsockname() != os.path.abspath(path) or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        # Clients that connect from now on get the credentials of this process.
        sock.listen(backlog)
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISSOCK(found.st_mode):
                return False
            wanted = (mode, os.geteuid() if uid == -1 else uid, _new_file_gid(path) if gid == -1 else gid)
            if (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == wanted:
                return True
            if found.st_nlink != 1 or _listening_pid(f'/proc/self/fd/{fd}') != os.getpid():
                return False
            # First without the rights that are too many, and as owner: chmod needs no CAP_FOWNER then.
            os.chown(f'/proc/self/fd/{fd}', os.geteuid(), -1)
            os.chmod(f'/proc/self/fd/{fd}', stat.S_IMODE(found.st_mode) & mode)
            _set_access(fd, *wanted)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def _new_file_gid(path: str) -> int:
    """The group of a new file at ``path``."""
    directory = os.stat(os.path.dirname(os.path.abspath(path)))
    return directory.st_gid if directory.st_mode & stat.S_ISGID else os.getegid()


def _listening_pid(path: str) -> int:
    """The process that called listen() on the socket at ``path``. Raises OSError if none listens.

    Waits PROBE_TIMEOUT_S at most for a place in its queue.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Python's own timeout makes the socket non-blocking, and connect() to a full queue then fails at once.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', PROBE_TIMEOUT_S, 0))
        probe.connect(path)
        pid: int = struct.unpack('3i', probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def _set_access(fd: int, mode: int, uid: int, gid: int) -> None:
    """Set mode and owner of a file by an O_PATH descriptor; -1 for a uid or gid that stays.

    In the order group, mode, owner: access is never wider than configured, and chmod needs no CAP_FOWNER.
    """
    os.chown(f'/proc/self/fd/{fd}', -1, gid)
    os.chmod(f'/proc/self/fd/{fd}', mode)
    os.chown(f'/proc/self/fd/{fd}', uid, -1)


@contextmanager
def _lock(name: str, dir_fd: int) -> Iterator[None]:
    """Hold a lock on the file ``name``, then remove it. Raises BlockingIOError if another process has the lock."""
    fd = safe_files.open_locked(name, dir_fd=dir_fd)
    try:
        yield
    finally:
        os.unlink(name, dir_fd=dir_fd)
        os.close(fd)


def _bind_unix(
    path: str, name: str, dir_fd: int, kind: int, mode: int, uid: int, gid: int, backlog: int
) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        # bind(2) creates the file with the mode of the socket, so only the owner has access.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
        # A descriptor is used because the owner of the directory could replace the file meanwhile.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            found = os.fstat(fd)
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
                raise PermissionError(errno.EPERM, 'another process has replaced it')
            _set_access(fd, mode, uid, gid)
        finally:
            os.close(fd)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit. A thousand routers need more than the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tcp_listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on each of ``hosts``. Raises ConfigError if the first address fails. Other failures are warnings.

    The first address is IPv4. It is served even if IPv6 is disabled or an interface is missing.
    """
    listeners = [tcp_listener(hosts[0], port)]
    for host in hosts[1:]:
        try:
            # A short timeout, because the first call has already waited for a former process.
            listeners.append(tcp_listener(host, port, timeout_s=1.0))
        except ConfigError as error:
            LOG.warning('Serving %s only: %s', hosts[0], error)
    return listeners


def tcp_listener(
    host: str,
    port: int,
    *,
    backlog: int = limits.LISTEN_BACKLOG,
    timeout_s: float = limits.PORT_IN_USE_TIMEOUT_S,
    sleep: Callable[[float], None] = time.sleep,
    find_process: Callable[[int], ListeningProcess | None] = listening_process.find,
) -> socket.socket:
    """Listen on ``host`` (empty: every address of the namespace, both families) and ``port``.

    While the port is in use, this function tries again for ``timeout_s``, because a former proxy may be about to end.
    If a program of another package listens on the port, the function tries only for
    ``limits.FOREIGN_PORT_TIMEOUT_S``. An IPv6 address may have a zone (``fe80::a9fe:a9fe%qr-1``). Such an address need
    not exist yet, and may be removed and added again. If listening fails, raises ConfigError. Its text names the
    process that listens on the port, if this process is visible.
    """
    started_at = time.monotonic()
    next_search_s = limits.FOREIGN_PORT_TIMEOUT_S
    while True:
        try:
            return bind_tcp(host, port, backlog)
        except ConfigError as error:
            cause = error.__cause__
            number = cause.errno if isinstance(cause, OSError) else None
            waited_s = time.monotonic() - started_at
            if number == errno.EADDRINUSE and waited_s >= min(timeout_s, next_search_s):
                # Not at each attempt, because the search reads the descriptors of every process.
                next_search_s += limits.FOREIGN_PORT_TIMEOUT_S
                process = find_process(port)
                if process and (not process.is_own or waited_s >= timeout_s):
                    raise ConfigError(process.message(port, listening_process.namespace_name())) from cause
            if number not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) or waited_s >= timeout_s:
                raise
        sleep(limits.PORT_RETRY_INTERVAL_S)


def bind_tcp(
    host: str,
    port: int,
    backlog: int = limits.LISTEN_BACKLOG,
    *,
    reuse_port: bool = False,
    option: str = 'metadata_port',
) -> socket.socket:
    """Listen on ``host`` and ``port`` without a retry.

    With ``reuse_port`` other processes of the same user may listen on the port too: during an upgrade, the workers of
    the former program. If listening fails, raises ConfigError with the OSError as its cause. Its text names
    ``option``.
    """
    try:
        return _bind_and_listen(host, port, backlog, reuse_port)
    except OSError as error:
        where = f'[{host}]:{port}' if ':' in host else f'{host or "any address"} port {port}'
        raise ConfigError(f'{option}: cannot listen on {where}: {error.strerror or error}') from error


def _bind_and_listen(host: str, port: int, backlog: int, reuse_port: bool) -> socket.socket:
    family, *_, address = socket.getaddrinfo(
        host or '::', port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )[0]
    if not host and not _has_ipv6():
        family, address = socket.AF_INET, ('0.0.0.0', port)  # noqa: S104 (iptables rules limit access)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
        # As in Grizzly: if a client disappears without FIN, its connection is closed after 10 minutes.
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


def _remove_stale(path: str, name: str, dir_fd: int, kind: int, option: str) -> bool:
    """Remove the socket file if no process listens on it. Returns whether the path is free now."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f'{option} = {path}: the file exists and is not a socket; name another path or remove it')
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=dir_fd)
            return True
        except FileNotFoundError:
            return True
        except BlockingIOError:
            # A process listens, and its accept queue is full.
            return False
    return False


def uid_of(user: str) -> int:
    """The uid of ``metadata_proxy_user = user``, a name or number; -1 for ''. Raises ConfigError if it is unknown."""
    if not user:
        return -1
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f'metadata_proxy_user = {user}: there is no such user') from None


def gid_of(group: str) -> int:
    """The gid of ``metadata_proxy_group = group``, a name or number; -1 for ''. Raises ConfigError if it is unknown."""
    if not group:
        return -1
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f'metadata_proxy_group = {group}: there is no such group') from None
