# SPDX-License-Identifier: Apache-2.0
"""systemd's file descriptor store: systemd holds the listening sockets while keeper and workers are both stopped.

While the keeper restarts, the workers hold the sockets. While the workers restart, the keeper holds them. Without the
store the sockets are closed if both stop at the same time. A unit with ``FileDescriptorStoreMax=`` may send its sockets
to systemd and gets them back at its next start.

Facts from sd_notify(3) and sd_listen_fds(3) of systemd 252: a descriptor is sent in a datagram. At the next start it is
number 3, 4, ..., and ``LISTEN_FDNAMES`` has the names. A name is at most 255 printable ASCII characters without a
colon. A socket is stored only once, even if it is sent again under another name. The store is emptied when the unit is
stopped, but not when it is restarted or ends by itself.

The name of a socket contains the listener's fields, so no other file is needed. The name is not trusted: the registry
checks that the socket matches it.
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

FIRST_DESCRIPTOR = 3
MAX_NAME_BYTES = 255
SEND_TIMEOUT_S = 1.0
ROUTER, NETWORK = 'router', 'network'


class SystemdFdStore:
    """Sends notifications to systemd at ``address``; see :class:`metadata_wsgi.keeper.registry.FdStore`.

    If a socket cannot be stored, it is served but may be lost at a restart. A warning is logged.
    """

    def __init__(self, address: str) -> None:
        self._names: set[str] = set()
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._systemd.settimeout(SEND_TIMEOUT_S)
        self._systemd.connect('\0' + address[1:] if address.startswith('@') else address)

    def ready(self) -> None:
        """Notify systemd that the service has started (``Type=notify``)."""
        self._notify('READY=1')

    def restore(
        self, environ: MutableMapping[str, str], first: int = FIRST_DESCRIPTOR
    ) -> Iterator[tuple[Listener, socket.socket]]:
        """The sockets that an earlier keeper stored. The caller must register each, or close it and call ``remove``.

        Removes the variables about these sockets from ``environ``.
        """
        names = environ.pop('LISTEN_FDNAMES', '').split(':')
        count = int(environ.pop('LISTEN_FDS', '0'))
        if environ.pop('LISTEN_PID', '') != str(os.getpid()):
            return
        # A descriptor without a name is closed, like a descriptor with an invalid name.
        names += [''] * (count - len(names))
        for descriptor, name in zip(range(first, first + count), names, strict=False):
            os.set_inheritable(descriptor, False)
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
        if self._notify(f'FDSTORE=1\nFDNAME={name}', sock.fileno()):
            self._names.add(name)

    def remove(self, listener: Listener) -> None:
        """Remove the socket of ``listener`` if it is stored."""
        name = name_of(listener)
        if name in self._names:
            self._remove(name)

    def close(self) -> None:
        """Close the connection; systemd still has the stored sockets."""
        self._systemd.close()

    def _remove(self, name: str) -> None:
        self._names.discard(name)
        self._notify(f'FDSTOREREMOVE=1\nFDNAME={name}')

    def _notify(self, text: str, descriptor: int | None = None) -> bool:
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [descriptor]))] if descriptor is not None else []
        )
        try:
            self._systemd.sendmsg([text.encode('ascii')], ancillary)
        except OSError as error:
            LOG.warning('%r could not be sent to systemd, so its stored sockets may be out of date: %s', text, error)
            return False
        return True


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
