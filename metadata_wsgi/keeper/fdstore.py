# SPDX-License-Identifier: Apache-2.0
"""systemd's file descriptor store: it holds the listening sockets while keeper and workers are both stopped.

Without it the workers hold a keeper's sockets while it is restarted, and the keeper theirs; if both are stopped at
once the sockets are closed. A unit with ``FileDescriptorStoreMax=`` may pass its sockets to systemd, and gets them
back at its next start.

Facts, sd_notify(3) and sd_listen_fds(3) of systemd 252: a descriptor is sent in a datagram and comes back as number
3, 4, ... with the names in ``LISTEN_FDNAMES``. A name is at most 255 printable ASCII characters, none of them a
colon. A socket that is stored already is not stored a second time, under another name either. The store is emptied
when the unit is stopped, not when it is restarted or ends by itself.

The name contains the listener's fields, so no file has to agree with the store. It is trusted as little as a worker:
the registry checks that the socket matches the name.
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

    If systemd refuses a socket it is still served, but may be lost at a restart; a warning in the log says so.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._names: set[str] = set()
        self._notifier = notifier

    def restore(
        self, environ: MutableMapping[str, str], first: int = sd_notify.FIRST_DESCRIPTOR
    ) -> Iterator[tuple[Listener, socket.socket]]:
        """The sockets that an earlier keeper stored. The caller registers each, or closes it and calls ``remove``.

        The variables of ``environ`` that describe them are removed from it.
        """
        # A descriptor without a name is closed, as one with an unknown name is.
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
        """Store ``sock`` unless ``listener`` is stored."""
        name = name_of(listener)
        if name in self._names:
            return
        if len(name) > MAX_NAME_BYTES:
            LOG.warning('%s has too long a name to be stored by systemd', listener)
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
    """The listener's fields as a name for the store, separated by slashes: no field contains one."""
    kind = ROUTER if listener.router_id else NETWORK
    fields = (listener.mode, kind, listener.id, str(listener.port), listener.namespace, listener.host)
    return '/'.join(quote(field, safe='') for field in fields)


def listener_from_name(name: str) -> Listener:
    """The listener of this name. Raises ValueError if ``name_of`` cannot have made the name."""
    fields = [unquote(field, errors='strict') for field in name.split('/')]
    if len(fields) != 6 or fields[1] not in (ROUTER, NETWORK):
        raise ValueError("not a name of the keeper's")
    mode, kind, id_, port, namespace, host = fields
    ids = {f'{kind}_id': id_}
    return Listener.from_json({'mode': mode, 'namespace': namespace, 'port': int(port), 'host': host, **ids})
