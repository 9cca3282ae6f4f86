# SPDX-License-Identifier: Apache-2.0
"""A boot storm: guests behind many routers boot at the same time.

    storm.py DEVICES GUESTS_PER_DEVICE WITHIN_S

Runs in the guests' namespace, where the interfaces g0, g1, ... lead to the first, second, ... router. Each guest
sends the requests of a cloud-init boot one after the other, each on a new connection, and continues after failures.
Prints one JSON object. The client is one process with epoll, so that it needs little CPU.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter

_VERSION = '/openstack/2018-08-27'
_EC2 = '/latest/meta-data'
PATHS = (
    *('/openstack', '/openstack'),
    *(f'{_VERSION}/{name}' for name in ('meta_data.json', 'user_data', 'vendor_data.json', 'vendor_data2.json')),
    f'{_VERSION}/network_data.json',
    f'{_EC2}/',
    *(f'{_EC2}/block-device-mapping/{name}' for name in ('', 'ami', 'root')),
    *(f'{_EC2}/placement/{name}' for name in ('', 'availability-zone')),
    *(f'{_EC2}/public-keys/{name}' for name in ('', '0/openssh-key')),
    *(f'{_EC2}/ami-{name}' for name in ('id', 'launch-index', 'manifest-path')),
    *(f'{_EC2}/instance-{name}' for name in ('action', 'id', 'type')),
    *(f'{_EC2}/{name}' for name in ('hostname', 'local-hostname', 'local-ipv4', 'public-hostname', 'public-ipv4')),
    *(f'{_EC2}/{name}' for name in ('reservation-id', 'security-groups')),
)
ADDRESS = ('169.254.169.254', 80)
TIMEOUT_S = 60.0


class Guest:
    """A booting guest: the index of its current request, and the received bytes of the response."""

    def __init__(self, device: str, address: str) -> None:
        self.device = device
        self.address = address
        self.step = 0
        self.began = 0.0
        self.received = b''
        self.sock: socket.socket | None = None

    def connect(self) -> socket.socket:
        """Open the connection of the next request. The time of this request starts here."""
        self.began = time.monotonic()
        self.received = b''
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.device.encode())
        self.sock.bind((self.address, 0))
        self.sock.connect_ex(ADDRESS)
        return self.sock

    def request(self) -> bytes:
        """The bytes of the current request."""
        return (
            f'GET {PATHS[self.step]} HTTP/1.1\r\nHost: {ADDRESS[0]}\r\nUser-Agent: Cloud-Init/24.4\r\n'
            'Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: close\r\n\r\n'
        ).encode()

    def receive(self, data: bytes) -> str | None:
        """Add received bytes. Returns the status of a complete response, 'cut' if the connection ended earlier."""
        self.received += data
        head, separator, body = self.received.partition(b'\r\n\r\n')
        if separator:
            for line in head.lower().split(b'\r\n'):
                if line.startswith(b'content-length:') and len(body) >= int(line[15:]):
                    return head[9:12].decode()
        return None if data else 'cut'


class Storm:
    """All guests in one event loop."""

    def __init__(self, guests: list[Guest]) -> None:
        self._epoll = select.epoll()
        self._guests = guests
        self._open: dict[int, Guest] = {}
        self.outcomes: Counter[str] = Counter()
        self.durations_s: list[float] = []

    def run(self, within_s: float) -> float:
        """Boot all guests. Returns the seconds until the last one is done, at most ``within_s``."""
        began = time.monotonic()
        for guest in self._guests:
            self._begin(guest)
        checked_at = began
        while self._open and (now := time.monotonic()) - began < within_s:
            for number, events in self._epoll.poll(0.2):
                self._event(self._open[number], events)
            if now - checked_at > 1:
                checked_at = now
                for guest in [guest for guest in self._open.values() if now - guest.began > TIMEOUT_S]:
                    self._done(guest, 'timeout')
        return time.monotonic() - began

    def _begin(self, guest: Guest) -> None:
        number = guest.connect().fileno()
        self._open[number] = guest
        self._epoll.register(number, select.EPOLLOUT)

    def _event(self, guest: Guest, events: int) -> None:
        assert guest.sock is not None
        try:
            if events & select.EPOLLOUT:
                guest.sock.send(guest.request())
                self._epoll.modify(guest.sock.fileno(), select.EPOLLIN)
                return
            outcome = guest.receive(guest.sock.recv(1 << 16))
        except OSError as error:
            outcome = type(error).__name__
        if outcome:
            self._done(guest, outcome)

    def _done(self, guest: Guest, outcome: str) -> None:
        assert guest.sock is not None
        self.outcomes[outcome] += 1
        self.durations_s.append(time.monotonic() - guest.began)
        self._epoll.unregister(guest.sock.fileno())
        del self._open[guest.sock.fileno()]
        guest.sock.close()
        guest.step += 1
        if guest.step < len(PATHS):
            self._begin(guest)


def main(devices: int, guests_per_device: int, within_s: float) -> None:
    """Print the result."""
    # Ordered so that guests of different routers alternate, as on a real host.
    guests = [Guest(f'g{d}', f'10.1.{d}.{g + 2}') for g in range(guests_per_device) for d in range(devices)]
    storm = Storm(guests)
    seconds = storm.run(within_s)
    took_ms = sorted(1000 * s for s in storm.durations_s) or [0.0]
    requests = len(guests) * len(PATHS)
    result = {
        'guests': len(guests),
        'sent': requests,
        'good': storm.outcomes['200'],
        'failed': requests - storm.outcomes['200'],
        'others': {outcome: count for outcome, count in storm.outcomes.items() if outcome != '200'},
        'seconds': round(seconds, 3),
        'p50_ms': round(took_ms[len(took_ms) // 2], 2),
        'p99_ms': round(took_ms[len(took_ms) * 99 // 100], 2),
        'max_ms': round(took_ms[-1], 2),
    }
    print(json.dumps(result))


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
