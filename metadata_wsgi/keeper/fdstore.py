# SPDX-License-Identifier: Apache-2.0
"""systemd's file descriptor store: systemd holds the listening sockets while keeper and workers are both stopped.

While the keeper restarts, the workers hold the sockets. While the workers restart, the keeper holds the sockets. If
both stop at the same time, the sockets are closed, unless systemd holds copies. A unit with ``FileDescriptorStoreMax=``
may send its sockets to systemd. At the next start of the unit, systemd returns them.

Facts from sd_notify(3) and sd_listen_fds(3) of systemd 252: a descriptor is sent in a datagram. At the next start the
descriptors have the numbers 3, 4, ..., and ``LISTEN_FDNAMES`` has their names. A name is at most 255 printable ASCII
characters without a colon. A socket is stored only once, even if it is sent again under another name. systemd empties
the store when the unit is stopped, but not when it is restarted or ends by itself.

The name of a socket contains the listener's fields, so no other file is needed. The name may be wrong, so the registry
checks that the socket matches the name.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, MutableMapping
from urllib.parse import quote, unquote

from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.net import sd_notify
from metadata_wsgi.net.sd_notify import Notifier

LOG = logging.getLogger(__name__)

MAX_NAME_BYTES = 255
ROUTER, NETWORK = 'router', 'network'


class SystemdFdStore:
    """Sends sockets to systemd through ``notifier``; see :class:`metadata_wsgi.keeper.registry.FdStore`.

    If a socket cannot be stored, it is still served, but a restart may close it. A warning is logged.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._names: set[str] = set()
        self._notifier = notifier

    def restore(
        self, environ: MutableMapping[str, str], first: int = sd_notify.FIRST_DESCRIPTOR
    ) -> Iterator[tuple[Listener, socket.socket]]:
        """The sockets that an earlier keeper stored. The caller must register each socket, or close and ``remove`` it.

        Removes the variables that describe these sockets from ``environ``.
        """
        # A descriptor without a name is closed, like one with an invalid name.
        for name, descriptor in sd_notify.inherited(environ, first):
            self._names.add(name)
            try:
                listener, sock = listener_from_name(name), socket.socket(fileno=descriptor)
            except (ValueError, OSError) as error:
                LOG.warning('systemd stored %r, which is not a socket of a namespace: %s', name, error)
                os.close(descriptor)
                self._remove(name)
                continue
            sock.setblocking(False)
            yield listener, sock

    def add(self, listener: Listener, sock: socket.socket) -> None:
        """Store ``sock``, unless ``listener`` is already stored."""
        name = name_of(listener)
        if name in self._names:
            return
        if len(name) > MAX_NAME_BYTES:
            LOG.warning('%s cannot be stored by systemd: its name is too long', listener)
            return
        if self._notifier.store(name, sock.fileno()):
            self._names.add(name)

    def remove(self, listener: Listener) -> None:
        """Remove the socket of ``listener`` if it is stored."""
        name = name_of(listener)
        if name in self._names:
            self._remove(name)

    def _remove(self, name: str) -> None:
        self._names.discard(name)
        self._notifier.remove_from_store(name)


def name_of(listener: Listener) -> str:
    """The name of a listener in the store: its fields, separated by slashes. Special characters are quoted."""
    kind = ROUTER if listener.router_id else NETWORK
    fields = (listener.mode, kind, listener.id, str(listener.port), listener.namespace, listener.host)
    return '/'.join(quote(field, safe='') for field in fields)


def listener_from_name(name: str) -> Listener:
    """The listener with this name: reverses ``name_of``. Raises ValueError for an invalid name."""
    fields = [unquote(field, errors='strict') for field in name.split('/')]
    if len(fields) != 6 or fields[1] not in (ROUTER, NETWORK):
        raise ValueError("not a name of the keeper's")
    mode, kind, id_, port, namespace, host = fields
    ids = {f'{kind}_id': id_}
    return Listener.from_json({'mode': mode, 'namespace': namespace, 'port': int(port), 'host': host, **ids})
