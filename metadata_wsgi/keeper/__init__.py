# SPDX-License-Identifier: Apache-2.0
"""The keeper: the one privileged part of a host with many routers. It opens sockets and keeps them.

A listening socket stays in the network namespace where it was opened, whoever serves it. So one small
process, root, opens a socket in each router's namespace and hands it to unprivileged workers, which never
change namespace: a router costs a socket, not a process. The workers may be killed, upgraded and
restarted: the sockets, and the connections that wait in them, stay with the keeper.

It accepts no connection of a guest and reads no byte of one. What it can be asked has three verbs:
``attach``, ``detach`` and ``list`` (``protocol``), on a socket that only root can open. Workers ask
nothing: they follow (``following``) and are sent what there is to serve, and every change of it.

When the keeper itself is restarted the workers keep serving what they have and hand it back to the new
one: nothing is closed in between. Where systemd runs it they may even go together: systemd holds the sockets
meanwhile (``store``). ``doc/one_hop.md`` says what happens when.

=============  ================================================================================
``protocol``   the packets, and what a listener is
``registry``   what is kept, and who has been told of it (pure)
``opening``    open a socket in a namespace; is one that is handed over such a socket?
``store``      systemd holds the sockets too
``serving``    the keeper's process
``asking``     ask it; ``places`` asks for a router or network, as attach and detach do
``following``  a worker's side
=============  ================================================================================
"""
