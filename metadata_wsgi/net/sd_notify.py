# SPDX-License-Identifier: Apache-2.0
"""Sends notifications to systemd, sd_notify(3), and receives the sockets that systemd kept.

``READY=1``     the service has started (``Type=notify``)
``STATUS=``     a line that ``systemctl status`` shows
``FDSTORE=1``   a socket that systemd keeps open while the service is restarted; the next process inherits it
``WATCHDOG=1``  the service makes progress; if systemd does not get this for ``WatchdogSec=``, it restarts the service

Each program sends WATCHDOG=1 in the loop that does its work. A separate timer would also send it while the work hangs.

``from_environ`` removes the variables that describe systemd from the environment, so that no child process sends
notifications for the service. The library ``sdnotify`` is not used, because it cannot send descriptors, and keeper and
agent send some.
"""

from __future__ import annotations

import array
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping

from metadata_wsgi import limits
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

VARIABLES = ('NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID')
FIRST_DESCRIPTOR = 3
SEND_TIMEOUT_S = 1.0
WATCHDOG_DIVISOR = 4
"""Notifications in one interval of the watchdog. sd_watchdog_enabled(3) recommends two or more."""
MAX_STATUS_CHARS = 200


class Notifier:
    """Sends notifications to systemd's socket ``address``. If ``address`` is '', as outside of a unit, sends nothing.

    ``watchdog_s`` is the unit's ``WatchdogSec=``, 0 if it has none. If a notification cannot be sent, this is logged.
    """

    def __init__(
        self, address: str = '', *, watchdog_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.environ: dict[str, str] = {}
        """The variables that ``from_environ`` has removed."""
        self._systemd: socket.socket | None = None
        if address:
            self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._systemd.settimeout(SEND_TIMEOUT_S)
            try:
                self._systemd.connect('\0' + address[1:] if address.startswith('@') else address)
            except OSError:
                self._systemd.close()
                raise
        self._watchdog_interval_s = watchdog_s / WATCHDOG_DIVISOR
        self._next_watchdog_s = 0.0
        self._status = ''
        self._is_ready = False
        self._clock = clock
        self._error_log = Throttle(limits.LOG_INTERVAL_S)

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """The notifier of this service. Removes the variables that it reads from ``environ``."""
        removed = {name: environ.pop(name) for name in VARIABLES if name in environ}
        address, usec, pid = (removed.get(name, '') for name in VARIABLES)
        has_watchdog = usec.isascii() and usec.isdigit() and pid in ('', str(os.getpid()))
        try:
            notifier = cls(address, watchdog_s=int(usec) / 1e6 if has_watchdog else 0.0)
        except OSError as error:
            LOG.warning('systemd cannot be notified at %s: %s', address, error)
            return cls()
        notifier.environ = removed
        return notifier

    def __bool__(self) -> bool:
        """Whether notifications are sent."""
        return self._systemd is not None

    @property
    def has_watchdog(self) -> bool:
        """Whether systemd ends this service when ``progress`` is no longer called."""
        return self._watchdog_interval_s > 0

    def ready(self, status: str = '') -> None:
        """Send that the service has started. The second and later calls only change the status."""
        if self._is_ready:
            self.status(status)
            return
        self._is_ready = True
        self._status = status
        self.send(f'READY=1\nSTATUS={_line(status)}' if status else 'READY=1')

    def status(self, status: str) -> None:
        """Show ``status`` in ``systemctl status``. Sent only if it has changed."""
        if status != self._status:
            self._status = status
            self.send(f'STATUS={_line(status)}')

    def progress(self) -> None:
        """Feed the watchdog, at most WATCHDOG_DIVISOR times in its interval. Call it after work has been done."""
        now_s = self._clock()
        if self._watchdog_interval_s and now_s >= self._next_watchdog_s:
            self._next_watchdog_s = now_s + self._watchdog_interval_s
            self.send('WATCHDOG=1')

    def stopping(self) -> None:
        """Send that the service is about to end."""
        self.send('STOPPING=1\nSTATUS=Stopping')

    def store(self, name: str, descriptor: int) -> bool:
        """Make systemd keep this descriptor for the next process. Returns whether the notification was sent."""
        return self.send(f'FDSTORE=1\nFDNAME={name}', descriptor)

    def remove_from_store(self, name: str) -> None:
        """Make systemd close the descriptors of this name."""
        self.send(f'FDSTOREREMOVE=1\nFDNAME={name}')

    def send(self, text: str, descriptor: int | None = None) -> bool:
        """Send a notification, with a file descriptor if one is given. Returns whether it was sent."""
        if self._systemd is None:
            return False
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [descriptor]))] if descriptor is not None else []
        )
        try:
            self._systemd.sendmsg([text.encode('utf-8', errors='replace')], ancillary)
        except OSError as error:
            if self._error_log.allow():
                LOG.warning('%r could not be sent to systemd: %s', text, error)
            return False
        return True

    def close(self) -> None:
        """Close the connection. Later notifications are not sent."""
        if self._systemd is not None:
            self._systemd.close()
            self._systemd = None


def inherited(
    environ: MutableMapping[str, str] = os.environ, first: int = FIRST_DESCRIPTOR
) -> Iterator[tuple[str, int]]:
    """(name, descriptor) of each descriptor that systemd has kept. The caller must close those that it does not use.

    The descriptors have the numbers 3, 4, ... (sd_listen_fds(3)). Removes the variables that describe the descriptors
    from ``environ``.
    """
    names = environ.pop('LISTEN_FDNAMES', '').split(':')
    count = int(environ.pop('LISTEN_FDS', '0'))
    if environ.pop('LISTEN_PID', '') != str(os.getpid()):
        return
    names += [''] * (count - len(names))
    for descriptor, name in zip(range(first, first + count), names, strict=False):
        os.set_inheritable(descriptor, False)
        yield name, descriptor


def _line(status: str) -> str:
    """``status`` without line breaks, because a line break would begin another notification."""
    return ' '.join(status.split())[:MAX_STATUS_CHARS]
