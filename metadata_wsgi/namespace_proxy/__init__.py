# SPDX-License-Identifier: Apache-2.0
"""The namespace proxy: a small program inside the network namespace of a router or network.

An instance reaches only what listens in the namespace of its router; Nova is reached only from the host. So one process
serves each side, except in mode ``one_hop``. A unix socket connects the two: it is a file, so it is there in every
namespace. The namespace proxy has no secret, cannot reach Nova and does not know other routers; it only adds
the address of its client and its own id to a request.

``app`` is the WSGI application, ``daemonize`` and ``pidfile`` are what an L3 agent expects of the program around it.
"""
