# SPDX-License-Identifier: Apache-2.0
"""The namespace proxy: a small program that accepts connections in the network namespace of a router or network.

An instance can connect only to sockets in the namespace of its router. Nova can be reached only from the host. So there
are two processes, except in mode ``one_hop``: the namespace proxy with sockets in namespaces, and the agent on the
host. A unix socket connects the two. This socket is a file, so it is visible in every network namespace. The namespace
proxy has no secret and cannot reach Nova. It adds the client's address and the id of the router or network to a
request.

``app`` is the WSGI application. ``daemonize`` and ``pidfile`` are needed because an L3 agent starts the program. The
L3 agent expects a background process with a pid file.
"""
