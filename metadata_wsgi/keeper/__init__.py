# SPDX-License-Identifier: Apache-2.0
"""The keeper: a small root process that opens listening sockets in network namespaces and sends them to workers.

A listening socket stays in the network namespace in which it was opened, even if a process in another namespace accepts
on it. So one privileged process, the keeper, opens a socket in each router's namespace and sends it to unprivileged
workers. The workers stay in the host's namespace. A router costs a socket and not a process. While workers are killed,
upgraded or restarted, the keeper holds the sockets with the connections in their accept queues.

The keeper accepts no client connection and reads no client data. Root sends it the requests ``attach``, ``detach``,
``get`` and ``list`` over a socket that only root can open. Workers send no requests. They subscribe. Then the keeper
sends them the listeners of their mode, and every later change.

When the keeper is restarted, the workers continue to serve and send their sockets to the new keeper. No socket is
closed. Under systemd the keeper and the workers may be restarted together, because systemd holds the sockets meanwhile
(``fdstore``). ``doc/modes.md`` has the details.

Terms in this package: a *listener* is a listening socket in a namespace, with its router or network id. A *subscriber*
is a worker that receives listeners. A listener is *registered*, *unregistered*, or *restored* after a restart
(``registry``).

======================  ==========================================================================
``protocol``            the packets, and the fields of a listener
``registry``            the registered listeners and the subscribers (no I/O)
``netns_listener``      opens a socket in a namespace; checks a socket that another process sent
``fdstore``             systemd's file descriptor store
``holders``             processes that hold copies of the sockets
``server``              the keeper's process
``admin_client``        sends attach, detach and list to the keeper
``attachments_client``  attaches and detaches routers and networks, with ``admin_client``
``worker_client``       a worker's subscription
======================  ==========================================================================
"""
