# SPDX-License-Identifier: Apache-2.0
"""Instances that boot in a loop, each in its own thread and inside its namespace, and what each request got.

A boot is the requests of cloud-init, one after the other, each on a new connection and with cloud-init's timeout.
A failed request is recorded and not repeated: here every failure counts.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from metadata_wsgi.netns import namespaces
from tests.chaos.topology import Client
from tests.clients.cloud_init_requests import OPENSTACK

METADATA = ('169.254.169.254', 80)
TIMEOUT_S = 10.0
"""cloud-init's; a second longer than the deadline of a request (``metadata_wsgi.limits.REQUEST_TIMEOUT_S``)."""
OK, RETRY_AFTER, TIMED_OUT, CUT = 'ok', '503 with Retry-After', 'timeout', 'cut'
REFUSED, NO_ROUTE = 'refused', 'no route'
MALFORMED = 'malformed'
"""200 with something that is not Nova's."""


class Exchange(NamedTuple):
    """One request and its outcome: ``OK`` or what went wrong. ``instance_id`` is the instance in the response."""

    started_s: float
    ended_s: float
    client: int
    target: str
    outcome: str
    instance_id: str


class Load:
    """Sends the requests of all ``clients``, each with a pause of ``pause_s`` between two."""

    def __init__(
        self, clients: Sequence[Client], *, pause_s: float, targets: Sequence[str] = OPENSTACK,
        record: Callable[[Exchange], object] | None = None, timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._pause_s = pause_s
        self._targets = targets
        self._timeout_s = timeout_s
        self._exchanges: list[Exchange] = []
        self._record = record or self._exchanges.append
        self._stopping = threading.Event()
        self.last: dict[int, Exchange] = {}
        """The last exchange of each client."""
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in clients]
        for thread in self._threads:
            thread.start()

    def take(self) -> list[Exchange]:
        """The exchanges that ended since the last call."""
        count = len(self._exchanges)
        taken = self._exchanges[:count]
        del self._exchanges[:count]
        return taken

    def stop(self) -> None:
        """End after the current requests."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * self._timeout_s)

    def _run(self, client: Client) -> None:
        namespaces.run_in(client.namespace, lambda: self._boot_in_loop(client))

    def _boot_in_loop(self, client: Client) -> None:
        # Not all at the same moment.
        self._stopping.wait(self._pause_s * client.number / len(self._threads))
        while True:
            for target in self._targets:
                if self._stopping.wait(self._pause_s):
                    return
                exchange = send(client, target, self._timeout_s)
                self._record(exchange)
                self.last[client.number] = exchange


def send(client: Client, target: str, timeout_s: float = TIMEOUT_S) -> Exchange:
    """One request from inside the client's namespace."""
    started_s = time.monotonic()
    outcome, instance_id = _send(client, target, timeout_s)
    return Exchange(started_s, time.monotonic(), client.number, target, outcome, instance_id)


def _send(client: Client, target: str, timeout_s: float) -> tuple[str, str]:
    connection = http.client.HTTPConnection(*METADATA, timeout=timeout_s, source_address=(client.address, 0))
    try:
        connection.request('GET', target, headers={'User-Agent': 'Cloud-Init/22.4.2', 'Connection': 'close'})
        response = connection.getresponse()
        body = response.read()
    except TimeoutError:
        return TIMED_OUT, ''
    except ConnectionRefusedError:
        return REFUSED, ''
    except (ConnectionError, http.client.HTTPException):
        return CUT, ''
    except OSError as error:
        return f'{NO_ROUTE}: {error.strerror}', ''
    finally:
        connection.close()
    if response.status == 503 and response.headers.get('Retry-After'):
        return RETRY_AFTER, ''
    if response.status != 200:
        return f'status {response.status}', ''
    try:
        got = json.loads(body)
        path, instance_id = got['path'], got['uuid']
    except (ValueError, TypeError, KeyError):
        return MALFORMED, ''
    return (OK if path == target else f'the response to {path}'), instance_id
