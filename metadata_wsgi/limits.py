# SPDX-License-Identifier: Apache-2.0
"""Every timeout, count and size of the server and of the HTTP client, in one table.

A number that an operator may set is an option, declared beside its use; its default is here where two
programs share it. Units are in the names: ``_S`` seconds, ``_BYTES`` bytes.
"""

from __future__ import annotations

# --- One request, end to end ---------------------------------------------------------------------------------------

REQUEST_TIMEOUT_S = 9.0
"""Default deadline of a request. cloud-init abandons a request after 10 s."""

AGENT_HEADROOM_S = 0.3
"""The namespace proxy gives the agent this much less time than it has, so that the agent's response arrives in time."""

BODY_DEADLINE_FRACTION = 2 / 3
"""A request body must arrive within this part of the time to the deadline, so that Nova has time to respond to it."""

MAX_REQUEST_BODY_BYTES = 1 << 20
"""Default limit of a request body; above it 413. The password that Nova accepts has 1,020 bytes."""

LOG_INTERVAL_S = 60.0
"""The same WARNING or ERROR is logged at most once in this interval, however many requests meet it."""

SECRET_CHANGE_LOG_INTERVAL_S = 600.0
"""The same, for the message that Nova accepts the other shared secret."""

UNKNOWN_INSTANCES_WARNING = 20
"""After this many 404s of Nova in a worker, and no 200, a WARNING says what may be wrong in nova.conf."""

UNKNOWN_INSTANCES_LOG_INTERVAL_S = 3600.0
"""That WARNING is logged at most once in this interval."""

# --- Server: listening ---------------------------------------------------------------------------------------------

PORT_IN_USE_TIMEOUT_S = 20.0
"""A TCP port in use is retried for this long: a former proxy finishes its requests, GRACEFUL_TIMEOUT_S. Shorter than
the 30 s after which ``attach`` ends the program that it started."""

FOREIGN_PORT_HOLDER_TIMEOUT_S = 2.0
"""The same if another program than one of ours listens on the port: it may be about to end, but probably is not."""

PORT_RETRY_INTERVAL_S = 0.2

# --- Server: connections -------------------------------------------------------------------------------------------

MAX_CONNECTIONS_PER_ADDRESS = 512
"""Connections of one client address. A boot is 28 requests, some of them concurrent; but hundreds of containers may
share one address, and all of them start when their instance does. Neutron's haproxy allows 1,024 for all clients of a
router together."""

MAX_CONCURRENT_PER_CLIENT = 16
"""Requests of one client address that the pipeline processes at a time; further ones wait for a slot,
until REQUEST_TIMEOUT_S after their header. With a Nova that takes 0.1 s this is 160 requests a second, or five boots.
Addresses of one global IPv6 /64 count as one client."""

MAX_IDLE_GREENLETS = 64
"""Greenlets that wait for the next connection. Reusing one saves the allocation of its stack."""

ACCEPT_BATCH = 16
"""Connections accepted in a row before other connections, and other workers, get their turn."""

ACCEPT_ERROR_BACKOFF_S = 0.1
"""Pause after accept() failed for want of descriptors or memory; without it the event loop spins."""

# --- Server: reading a request -------------------------------------------------------------------------------------

HEADER_TIMEOUT_S = 10.0
"""Time for a complete header: of the first request from the start of the connection, of the next ones from the first
byte."""

BODY_TIMEOUT_S = 6.0
"""Time for a complete request body, from the application's first read; never beyond REQUEST_TIMEOUT_S after the
header. It leaves time for Nova."""

READ_WRITE_TIMEOUT_S = 10.0
"""Longest pause of a client inside a body or a response, and of Nova inside a large response."""

KEEPALIVE_TIMEOUT_S = 75.0
"""An idle keep-alive connection is closed after this time."""

REQUESTS_PER_YIELD = 16
"""A client that pipelines requests gives way to other connections after this many."""

MAX_REQUEST_HEADER_BYTES = 1 << 15
"""Size of a request's header; above it 431."""

RECV_BYTES = 1 << 13
"""Size of one recv() on a client's connection."""

DRAIN_S = 1.0
DRAIN_RECVS = 256
"""After an early response the server reads on for this long and this often, so that the kernel does not send a reset
that overtakes the response."""

# --- Server: workers -----------------------------------------------------------------------------------------------

GRACEFUL_TIMEOUT_S = 12
"""A stopping worker may finish the requests in flight for this long: longer than REQUEST_TIMEOUT_S."""

WORKER_TIMEOUT_S = 30
"""The master kills a worker that sent no heartbeat for this long."""

STUCK_REQUEST_S = 15.0
"""A worker sends no heartbeat while a request is this long past its deadline and no other request has ended since."""

HEARTBEAT_FRESH_S = 5.0
"""A worker whose last heartbeat is younger than this serves. It sends one each second."""

CONFIG_CHECK_TIMEOUT_S = 60.0
"""Time in which the pipeline must load, at start and at SIGHUP, before the check of the configuration fails."""

FAILURES_PER_ADDRESS = 3
FAILURES_PER_NAMESPACE = 8
FAILURE_NAMESPACES = 128
"""Rows of the table of recent failures of a worker: of one client, of one router or network, and how many of those."""

FORMER_WORKERS = 4
"""The tables of this many workers that ended are kept: after a reload or a crash their failures can still be read."""

FAILURE_MEMORY_BYTES = 1 << 20
"""Memory for the published table of a worker. Only what is used takes memory: about 400 bytes for each row."""

GC_THRESHOLD = 20_000
"""Objects allocated and not freed before Python looks for reference cycles; a request makes hardly any."""

# --- HTTP client: namespace proxy to agent, agent to Nova ----------------------------------------------------------

CONNECT_TIMEOUT_S = 3.0
"""Time for one connection attempt: name resolution, all addresses of the name and TLS handshake together."""

UNIX_BACKLOG_RETRY_S = 0.02
"""Pause between two attempts to connect to a unix socket whose backlog is full."""

NAME_REFRESH_S = 30.0
"""The addresses of a name are looked up again after this time, in the background."""

NAME_RETRY_S = 1.0
"""A lookup of a name that failed is not repeated before this time."""

MAX_IDLE_CONNECTIONS = 256
"""Idle connections in the pool of one host."""

MAX_RESPONSE_HEADER_BYTES = 1 << 16
"""Size of a response's header; a larger one is an error."""

MAX_BUFFERED_BYTES = 1 << 20
"""A response up to this size is received whole before the client gets its first byte, so that it can be retried."""

CHUNK_BYTES = 1 << 16
"""Size of one recv() on the connection to the agent or Nova."""

# --- Retry ---------------------------------------------------------------------------------------------------------

RETRY_BASE_DELAY_S = 0.05
RETRY_MAX_DELAY_S = 1.0
"""The delay between two attempts doubles from the one to the other, with jitter."""

RETRY_MIN_TIME_FOR_ATTEMPT_S = 0.05
"""No attempt is started with less time than this before the deadline."""

RETRY_BUDGET_PER_REQUEST = 1.0
"""Each request adds this many retries to the budget that all requests to a service share. So a Nova that fails every
request gets at most twice the clients' own load, RETRY_BUDGET_PER_S and, once, RETRY_BUDGET_MAX."""

RETRY_BUDGET_PER_SUCCESS = 2.0
"""Each successful response adds this many: after an outage the load doubles with each response time, not at once."""

RETRY_BUDGET_PER_S = 10.0
"""Each second adds this many: a single instance is retried as often as the delays allow."""

RETRY_BUDGET_MAX = 100.0
"""The budget never has more retries than this."""

CIRCUIT_OPEN_FAILURES = 5
"""After this many failures to connect in a row the circuit is open: a host gets one attempt at a time."""

CIRCUIT_PROBE_INTERVAL_S = 0.5
"""The pause after each attempt while the circuit is open."""

CIRCUIT_MIN_TIME_S = 1.0
"""A failure to connect counts only if the attempt had this much time."""

NOVA_HOST_BACKOFF_S = 5.0
"""A Nova host that failed is tried after the others for this long."""
