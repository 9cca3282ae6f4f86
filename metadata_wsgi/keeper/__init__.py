# SPDX-License-Identifier: Apache-2.0
"""The keeper: a small root process that opens listening sockets in network namespaces and hands them to workers.

A listening socket stays in the network namespace where it was opened, whichever process accepts on it. So one
privileged process opens a socket in each router's namespace and passes it to unprivileged workers, which never
change namespace: a router costs a socket, not a process. Workers may be killed, upgraded and restarted: the sockets,
and the connections in their accept queues, stay with the keeper.

The keeper accepts no client connection and reads no client data. Root sends it one of three requests, ``attach``,
``detach`` and ``list``, over a socket that only root can open. Workers send no requests: they subscribe, and receive
the listeners of their mode and every later change.

When the keeper is restarted, workers go on serving the sockets that they have and send them back to the new keeper:
nothing is closed in between. Under systemd the keeper and the workers may be restarted together, because systemd
holds the sockets meanwhile (``fdstore``). ``doc/modes.md`` has the details.

The program, its subcommand and its unit are called "keeper"; so is this package. Inside it the terms are: a
*listener* (a listening socket in a namespace, with its router or network id), a *subscriber* (a worker that
receives listeners), *register*, *unregister* and *restore*.

======================  ==========================================================================
``protocol``            the packets, and the fields of a listener
``registry``            the registered listeners and the subscribers (pure, no I/O)
``netns_listener``      opens a socket in a namespace; checks a socket that was handed over
``fdstore``             systemd's file descriptor store
``server``              the keeper's process
``admin_client``        sends attach, detach and list to the keeper
``attachments_client``  the same by router or network instead of by listener
``worker_client``       a worker's subscription
======================  ==========================================================================
"""
