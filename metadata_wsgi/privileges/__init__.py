# SPDX-License-Identifier: Apache-2.0
"""What parses guests' bytes gives everything up that it does not need: user, capabilities, system calls.

Rule 1: a worker first reads what only root may read and takes its sockets, then drops, then serves.
Rule 2: what cannot be given up stops the worker; there is no serving with more rights than intended.
Rule 3: nothing of it can be taken back, not by the worker either.

``identity`` says whom a worker becomes, ``following`` where that depends on the agent's socket; ``dropping``
becomes it, ``syscalls`` is the filter of system calls.
"""
