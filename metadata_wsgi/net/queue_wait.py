# SPDX-License-Identifier: Apache-2.0
"""How long a connection with data waited before it was accepted.

While no worker accepts (restart, reload, a host that is too busy), connections wait in the kernel's accept queue. The
client's timeout runs meanwhile: cloud-init gives up 10 s after it connected, not 10 s after a worker accepted.

Fact: ``tcpi_last_data_recv`` of TCP_INFO (<linux/tcp.h>) is the time since the last data arrived. If no data has
arrived, it is the time since the handshake. The unit is milliseconds, with the resolution of the kernel's tick.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

_LAST_DATA_RECV = struct.Struct('=52xI')


def queue_wait_s(connection: Any) -> float:
    """Seconds since the last data arrived on a TCP connection. 0.0 for a socket that is not TCP."""
    try:
        (milliseconds,) = _LAST_DATA_RECV.unpack(
            connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECV.size)
        )
    except (OSError, struct.error):
        return 0.0
    return float(milliseconds) / 1000
