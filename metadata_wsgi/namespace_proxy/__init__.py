# SPDX-License-Identifier: Apache-2.0
"""The namespace proxy: a small program inside a router's or network's namespace.

Why two processes? A guest can only reach what listens in its own router's namespace, and Nova and the
agent's secret are reachable only from the host. The unix socket is the door between the two: a file,
so it is there in every namespace. What stands on the guest's side of it knows no secret, no Nova and
no other router: it can only say, truthfully, which of its neighbours is asking.

``app`` is the WSGI application, ``daemon`` and ``pidfile`` are what an L3 agent of Grizzly expects of
the program around it.
"""
