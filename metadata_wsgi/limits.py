# SPDX-License-Identifier: Apache-2.0
"""Every timeout, count and size of the server and of the HTTP client, in one table.

A number that an operator may set is an option and is declared beside its use. Its default is here if two programs
share it. Units are in the names: ``_S`` seconds, ``_BYTES`` bytes.
"""

from __future__ import annotations

# --- One request, end to end ---------------------------------------------------------------------------------------

REQUEST_TIMEOUT_S = 9.0
"""Default deadline of a request. cloud-init waits 10 s for a response."""

MIN_TIME_AFTER_QUEUE_S = 1.0
"""The deadline includes the time that a connection waited to be accepted. But each request gets at least this time:
some clients wait longer than cloud-init, and most requests need only milliseconds."""

AGENT_HEADROOM_S = 0.3
"""The agent gets this much less time than the namespace proxy has, so that the agent's response arrives in time."""

BODY_DEADLINE_FRACTION = 2 / 3
"""A request body must arrive within this part of the time to the deadline. The rest is for Nova's response."""

MAX_REQUEST_BODY_BYTES = 1 << 20
"""Default size limit of a request body; a larger one gets 413. Nova accepts a password of at most 1,020 bytes."""

LOG_INTERVAL_S = 60.0
"""The same WARNING or ERROR is logged at most once in this interval, even if many requests cause it."""

SECRET_CHANGE_LOG_INTERVAL_S = 600.0
"""While the shared secret is being changed: the message that Nova accepts the other secret is logged at most once in
this interval."""

UNKNOWN_INSTANCES_WARNING = 20
"""If a worker gets this many 404s from Nova and no 200, a WARNING names the option of nova.conf that may be wrong."""

UNKNOWN_INSTANCES_LOG_INTERVAL_S = 3600.0
"""The WARNING about 404s from Nova is logged at most once in this interval."""

# --- Server: listening ---------------------------------------------------------------------------------------------

PORT_IN_USE_TIMEOUT_S = 20.0
"""A program that finds its TCP port in use tries again for this time: a former proxy may still finish its requests
(GRACEFUL_TIMEOUT_S). ``attach`` waits 10 s longer for a command that it runs (``netns/runner.py``)."""

FOREIGN_PORT_TIMEOUT_S = 2.0
"""If a program of another package listens on the port, the port is retried only for this time."""

PORT_RETRY_INTERVAL_S = 0.2
"""Pause between two attempts to listen on a port in use."""

LISTEN_BACKLOG = 4096
"""Largest number of connections that wait to be accepted on a listener. The kernel's limit is net.core.somaxconn."""

# --- Server: connections -------------------------------------------------------------------------------------------

MAX_CONNECTIONS = 4096
"""Largest number of connections of a worker of the agent (default of ``metadata_connections``), or of a namespace proxy
of one router. Further connections wait in the backlog. The number is eight times MAX_CONNECTIONS_PER_ADDRESS, so a
single client cannot take all connections."""

MAX_CONNECTIONS_SHARED = 8192
"""Largest number of connections of a worker of the shared proxy, which serves all routers of a host."""

MAX_CONNECTIONS_PER_ADDRESS = 512
"""Largest number of connections of one client address to one worker. A boot is 28 requests, some of them concurrent.
But hundreds of containers may share one address and start at the same time. Neutron's haproxy allows 1,024 for all
clients of a router together."""

MAX_CONCURRENT_PER_CLIENT = 16
"""Requests of one client address that the pipeline processes at a time. Further requests wait for a slot for up to
REQUEST_TIMEOUT_S. If Nova responds in 0.1 s, a client can send 160 requests a second: those of five boots. All
addresses of a global IPv6 /64 count as one client."""

MAX_IDLE_GREENLETS = 64
"""Largest number of idle greenlets that wait for the next connections. A new greenlet would need a new stack."""

ACCEPT_BATCH = 16
"""Largest number of connections accepted in a row. Then other connections, and other workers, get their turn."""

ACCEPT_ERROR_BACKOFF_S = 0.1
"""Pause after accept() failed for lack of descriptors or memory. Without a pause the event loop would spin."""

# --- Server: reading a request -------------------------------------------------------------------------------------

HEADER_TIMEOUT_S = 10.0
"""Time for a complete header. For the first request of a connection it counts from the start of the connection, for a
later request from its first byte."""

BODY_TIMEOUT_S = 6.0
"""Time for a complete request body, from the application's first read. It is shorter than REQUEST_TIMEOUT_S, so that
time for Nova's response remains. The namespace proxy and ``upstream`` also apply BODY_DEADLINE_FRACTION."""

READ_WRITE_TIMEOUT_S = 10.0
"""Longest pause in a transfer: while a client sends a body or receives a response, and while Nova sends a large
response."""

KEEPALIVE_TIMEOUT_S = 75.0
"""An idle keep-alive connection is closed after this time."""

REQUESTS_PER_YIELD = 16
"""After this many pipelined requests on a connection, other connections get their turn."""

MAX_REQUEST_HEADER_BYTES = 1 << 15
"""Largest size of a request's header; a larger one gets 431."""

MAX_HEADER_LINES = 256
"""Largest number of header lines of a request or response, as in gunicorn_h1c. With more lines it is malformed."""

RECV_BYTES = 1 << 13
"""Size of one recv() on a client's connection."""

SEND_BYTES = 1 << 18
"""If the kernel does not take a whole response, the rest is sent in pieces of this size: each send() copies its
data."""

DRAIN_S = 1.0
DRAIN_RECVS = 256
DRAIN_RECV_BYTES = 1 << 16
"""If the server responds before it has read the whole request, it then reads and discards the client's data, for at
most DRAIN_S and with at most DRAIN_RECVS recv(). Otherwise the kernel could send a reset before the client has received
the response."""

# --- Server: workers -----------------------------------------------------------------------------------------------

GRACEFUL_TIMEOUT_S = 12
"""Time for a stopping worker to finish the requests in progress. It is longer than REQUEST_TIMEOUT_S."""

WORKER_TIMEOUT_S = 30
"""The master kills a worker that sent no heartbeat for this long."""

WORKER_START_RETRY_S = 5.0
"""If a new worker could not load, the master starts the next one after this time."""

STUCK_REQUEST_S = 15.0
"""A worker sends no heartbeat while a request is this long past its deadline and no request has ended in this time."""

HEARTBEAT_FRESH_S = 5.0
"""A worker counts as serving if its last heartbeat is younger than this. Workers send heartbeats each second."""

WORKER_NOTIFY_S = 1.0
"""Interval of a worker's heartbeats. At each heartbeat a worker also checks that its master still runs; if not, the
worker ends."""

CONFIG_CHECK_TIMEOUT_S = 60.0
"""Time for the pipeline to load, at start and at SIGHUP. After this time the check of the configuration fails."""

FAILURES_PER_ADDRESS = 3
FAILURES_PER_NAMESPACE = 8
FAILURE_NAMESPACES = 128
"""Limits of a worker's table of recent failures: rows of each client address, rows of each router or network, and
number of routers and networks with rows."""

FORMER_WORKERS = 4
"""The failure tables of this many ended workers are kept, so that they can be read after a reload or a crash."""

FAILURE_MEMORY_BYTES = 1 << 20
"""Largest size of the published table of a worker. Unused space takes no memory. A row takes about 400 bytes."""

FAILURE_MEMORIES_PER_USER = 256
"""Largest number of failure tables of one user that ``status`` and ``report`` read. Those of root are all read."""

GC_THRESHOLD = 20_000
"""Python searches for reference cycles after this many allocations without a deallocation. It is high because a request
makes hardly any cycles."""

# --- HTTP client: namespace proxy to agent, agent to Nova ----------------------------------------------------------

CONNECT_TIMEOUT_S = 3.0
"""Time for one connection attempt: name resolution, all addresses of the name and TLS handshake together. It also
limits connections to Neutron and Keystone (``lookup/neutron/transport.py``)."""

UNIX_BACKLOG_RETRY_S = 0.02
"""Pause between two attempts to connect to a unix socket with a full backlog."""

NAME_REFRESH_S = 30.0
"""The addresses of a host name are resolved again after this time, in the background."""

NAME_RETRY_S = 1.0
"""After a failed resolution, the same host name is not resolved again for this time."""

MAX_IDLE_CONNECTIONS = 256
"""Largest number of idle connections in the pool of one host."""

MAX_IDLE_S = 30.0
"""A connection in the pool is closed, and not reused, if this time has passed since its last request was sent. The time
is shorter than the idle timeouts of usual load balancers and firewalls, which may drop a connection without a reset."""

MAX_RESPONSE_HEADER_BYTES = 1 << 16
"""Largest size of a response's header; a larger one is an error."""

MAX_BUFFERED_BYTES = 1 << 20
"""A response up to this size is received completely before the client gets its first byte. So it can be retried."""

CHUNK_BYTES = 1 << 16
"""Size of one recv() on the connection to the agent or Nova."""

# --- Retry ---------------------------------------------------------------------------------------------------------

RETRY_BASE_DELAY_S = 0.05
RETRY_MAX_DELAY_S = 1.0
"""The delay before a retry is random. Its upper bound doubles with each retry, from RETRY_BASE_DELAY_S to
RETRY_MAX_DELAY_S."""

RETRY_MIN_TIME_FOR_ATTEMPT_S = 0.05
"""If less time than this remains to the deadline, no further attempt is made."""

RETRY_BUDGET_PER_REQUEST = 1.0
"""Each request adds this many retries to the budget, which all requests to a service share. So if every request
fails, there is one retry for each request. RETRY_BUDGET_PER_S, and the full budget at the start, allow some more."""

RETRY_BUDGET_PER_SUCCESS = 2.0
"""Each successful response adds this many retries. So after an outage the load grows step by step."""

RETRY_BUDGET_PER_S = 10.0
"""Each second adds this many retries to the budget. So the budget does not delay the retries of a single instance."""

RETRY_BUDGET_MAX = 100.0
"""The budget never has more retries than this."""

CIRCUIT_OPEN_FAILURES = 5
"""After this many failures to connect in a row, the circuit is open: only one request at a time tries to connect."""

CIRCUIT_PROBE_INTERVAL_S = 0.5
"""Pause after each attempt while the circuit is open."""

CIRCUIT_MIN_TIME_S = 1.0
"""A failure for lack of time counts against a service only if the attempt was given at least this time. A client can
shorten the deadline of its own request (``filters/deadline.py``)."""

NOVA_ATTEMPT_FRACTION = 2 / 3
"""If a request may be retried, an attempt gets this part of the remaining time. The rest is for a retry."""

NOVA_HOST_BACKOFF_S = 5.0
"""For this time after a failure, a Nova host gets a request only if the other hosts fail. After this time one request
tries it."""

NOVA_PROBE_TIMEOUT_S = 5.0
"""Time for the requests that check the shared secret of a Nova host, at start and in ``check-config``."""
