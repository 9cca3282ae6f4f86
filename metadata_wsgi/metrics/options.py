# SPDX-License-Identifier: Apache-2.0
"""The section ``[metrics]``: the directory of the counts, and the address on which the agent serves them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator, Mapping

from oslo_config import cfg

from metadata_wsgi import safe_files
from metadata_wsgi.config import config_files
from metadata_wsgi.errors import ConfigError

GROUP = 'metrics'
OPTS = [
    cfg.StrOpt(
        'directory',
        default='/run/metadata_wsgi/metrics',
        help='Directory with the counts of the workers. The agent creates it. Choose a directory that is emptied at '
        'boot, such as one in /run.',
    ),
    cfg.StrOpt(
        'listen',
        default='',
        help='Address and port on which the agent serves http://ADDRESS:PORT/metrics, for example 127.0.0.1:9698. By '
        'default the agent does not serve the metrics. The pipeline must have the filter metrics.',
    ),
    cfg.BoolOpt(
        'allow_remote',
        default=False,
        help='Allow an address in listen that other machines can reach. All its clients can read the page. '
        'The page names no instance. Configure a firewall so that only the Prometheus server can connect.',
    ),
]


def load_directory(global_conf: Mapping[str, str]) -> str:
    """The configured directory."""
    directory: str = config_files.load(global_conf, OPTS, GROUP).metrics.directory
    return os.path.abspath(directory)


def load_listen_address(global_conf: Mapping[str, str]) -> tuple[str, int] | None:
    """The address and port of ``listen``; None if it is not set. Raises ConfigError if the value is wrong."""
    conf = config_files.load(global_conf, OPTS, GROUP).metrics
    if not conf.listen:
        return None
    host, _, port = conf.listen.rpartition(':')
    try:
        address = ipaddress.ip_address(host.removeprefix('[').removesuffix(']'))
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f'listen = {conf.listen} in [{GROUP}]: not an address and a port; write 127.0.0.1:9698 or [::1]:9698'
        ) from None
    if not address.is_loopback and not conf.allow_remote:
        raise ConfigError(
            f'listen = {conf.listen} in [{GROUP}]: other machines, and perhaps instances, can reach this address; '
            'write a loopback address such as 127.0.0.1:9698, or set allow_remote = true behind a firewall'
        )
    return str(address), int(port)


def make_directory(path: str, owner: tuple[int, int] | None) -> None:
    """Make the directory if it is missing. Raises ConfigError if the workers cannot write there.

    ``owner`` is (uid, gid) of the workers if root starts them, else None. Root makes the directory and gives it to this
    user. Root never opens a file in the directory.
    """
    with _opened(path, make=True) as fd:
        _check_access(path, fd, owner)
        if owner is not None and os.fstat(fd).st_uid == 0:
            os.chown(f'/proc/self/fd/{fd}', *owner)


def check_directory(path: str, owner: tuple[int, int] | None) -> None:
    """Raise ConfigError if ``make_directory`` would. Changes nothing."""
    existing = path
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    with _opened(existing if os.path.isdir(existing) else path, make=False) as fd:
        if existing == path:
            _check_access(path, fd, owner)
        elif not _is_writable(fd):
            raise ConfigError(f'directory = {path} in [{GROUP}] cannot be made: {existing} is not writable')


@contextlib.contextmanager
def _opened(path: str, *, make: bool) -> Iterator[int]:
    try:
        fd = safe_files.open_directory(path, make=make)
    except OSError as error:
        raise ConfigError(f'directory = {path} in [{GROUP}] cannot be made: {error.strerror}') from error
    try:
        yield fd
    finally:
        os.close(fd)


def _check_access(path: str, fd: int, owner: tuple[int, int] | None) -> None:
    if owner is None:
        if not _is_writable(fd):
            raise ConfigError(f'directory = {path} in [{GROUP}] is not writable for this user')
        return
    owner_uid = os.fstat(fd).st_uid
    if owner_uid not in (0, owner[0]):
        raise ConfigError(
            f'directory = {path} in [{GROUP}] belongs to uid {owner_uid}, and the workers, uid {owner[0]}, cannot '
            'write there: remove it, or name another directory'
        )


def _is_writable(fd: int) -> bool:
    return os.access(f'/proc/self/fd/{fd}', os.W_OK, effective_ids=True)
