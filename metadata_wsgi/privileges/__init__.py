# SPDX-License-Identifier: Apache-2.0
"""A process that parses client data gives up every privilege that it does not need: user, capabilities, system calls.

Rule 1: a worker first reads what only root may read and opens its sockets, then drops its privileges, then serves.
Rule 2: if a privilege cannot be given up the worker ends; it never serves with more privileges than intended.
Rule 3: a privilege that was given up cannot be regained, not even by the worker.

``identity``              the user and group that workers become
``identity_from_socket``  the same, derived from owner, group and mode of the agent's socket
``drop``                  gives up user, capabilities and system calls
``seccomp``               the system call filter
"""
