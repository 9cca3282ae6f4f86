# SPDX-License-Identifier: Apache-2.0
"""systemd's store of descriptors: what is in it outlives the keeper and every worker, together.

Without it the workers have a keeper's sockets when it is gone, and the keeper theirs; who ends both at once ends the
sockets. A unit with ``FileDescriptorStoreMax=`` may give its sockets to systemd, and has them back when it is
started again.

Facts, sd_notify(3) and sd_listen_fds(3) of systemd 252: a descriptor goes beside a datagram and comes back as
number 3, 4, ... with the names in ``LISTEN_FDNAMES``. A name is at most 255 printable characters of ASCII, none of
them a colon. A socket that is in the store is not taken in a second time, under no other name either. The store is
emptied when the unit is stopped, not when it is restarted or ends by itself.

The name is the listener itself, so no file has to agree with the store. It is believed as little as a worker is: the
socket has to be what the name says.
"""

from __future__ import annotations

import array
import logging
import os
import socket
from collections.abc import Iterator, MutableMapping
from urllib.parse import quote, unquote

from metadata_wsgi.keeper.protocol import Listener

LOG = logging.getLogger(__name__)

FIRST = 3
NAME_LENGTH = 255
PATIENCE_S = 1.0
ROUTER, NETWORK = 'router', 'network'


class SystemdStore:
    """Speaks to the systemd at ``address``; see :class:`metadata_wsgi.keeper.registry.Store`.

    A socket that could not be given to it is served all the same: the log says what it would be lost by.
    """

    def __init__(self, address: str) -> None:
        self._names: set[str] = set()
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._systemd.settimeout(PATIENCE_S)
        self._systemd.connect('\0' + address[1:] if address.startswith('@') else address)

    def ready(self) -> None:
        """Tell systemd that whoever waits for the unit need wait no more."""
        self._say('READY=1')

    def taken_back(
        self, environ: MutableMapping[str, str], first: int = FIRST
    ) -> Iterator[tuple[Listener, socket.socket]]:
        """What an earlier keeper stored, for the caller to keep, or to close and ``forget``.

        ``environ`` says what there is, and says it once.
        """
        names = environ.pop('LISTEN_FDNAMES', '').split(':')
        number = int(environ.pop('LISTEN_FDS', '0'))
        if environ.pop('LISTEN_PID', '') != str(os.getpid()):
            return
        for descriptor, name in zip(range(first, first + number), names, strict=False):
            os.set_inheritable(descriptor, False)
            self._names.add(name)
            try:
                listener, kept = listener_of(name), socket.socket(fileno=descriptor)
            except (ValueError, OSError) as error:
                LOG.warning('systemd kept %r, which is no socket of a namespace: %s', name, error)
                os.close(descriptor)
                self._remove(name)
                continue
            kept.setblocking(False)
            yield listener, kept

    def keep(self, listener: Listener, kept: socket.socket) -> None:
        """Have it stored, unless it is."""
        name = name_of(listener)
        if name in self._names:
            return
        if len(name) > NAME_LENGTH:
            LOG.warning('%s has too long a name to be stored by systemd', listener)
            return
        if self._say(f'FDSTORE=1\nFDNAME={name}', kept.fileno()):
            self._names.add(name)

    def forget(self, listener: Listener) -> None:
        """Have it let go of, if it is stored."""
        name = name_of(listener)
        if name in self._names:
            self._remove(name)

    def close(self) -> None:
        """Speak no more; what is stored stays so."""
        self._systemd.close()

    def _remove(self, name: str) -> None:
        self._names.discard(name)
        self._say(f'FDSTOREREMOVE=1\nFDNAME={name}')

    def _say(self, text: str, descriptor: int | None = None) -> bool:
        beside = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [descriptor]))] if descriptor is not None else []
        )
        try:
            self._systemd.sendmsg([text.encode('ascii')], beside)
        except OSError as error:
            LOG.warning('systemd did not hear %r, what it stores may be out of date: %s', text, error)
            return False
        return True


def name_of(listener: Listener) -> str:
    """The listener as a name for the store: no field of one has a slash in it."""
    kind = ROUTER if listener.router_id else NETWORK
    fields = (listener.mode, kind, listener.id, str(listener.port), listener.namespace, listener.host)
    return '/'.join(quote(field, safe='') for field in fields)


def listener_of(name: str) -> Listener:
    """The listener that has this name. ValueError if there can be none."""
    fields = [unquote(field, errors='strict') for field in name.split('/')]
    if len(fields) != 6 or fields[1] not in (ROUTER, NETWORK):
        raise ValueError('not a name that a keeper gave')
    mode, kind, id_, port, namespace, host = fields
    ids = {f'{kind}_id': id_}
    return Listener.from_json({'mode': mode, 'namespace': namespace, 'port': int(port), 'host': host, **ids})
