# SPDX-License-Identifier: Apache-2.0
"""A process that parses client data drops every privilege that it does not need: user, capabilities, system calls.

Rule 1: a worker first reads the files that are readable for root only, and opens its sockets. Then it drops its
privileges. Then it serves.
Rule 2: if a privilege cannot be dropped, the worker ends. It never serves with more privileges than intended.
Rule 3: the worker cannot regain a dropped privilege.

``identity``              the user and group of the workers
``identity_from_socket``  the user and group of a namespace proxy's workers, from the agent's socket
``drop``                  changes the user, drops capabilities and installs the system call filter
``seccomp``               the system call filter
"""
