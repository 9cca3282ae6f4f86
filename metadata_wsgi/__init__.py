# SPDX-License-Identifier: Apache-2.0
"""The metadata path of a cloud: a guest asks 169.254.169.254 who it is, and only it is told.

A request walks through these rooms, in this order::

    namespace_proxy   in the router's namespace: says who is asking, over a unix socket
    server            gunicorn on that socket, on the host
    pipeline          the paste file, loaded and its order checked
    filters           source, instance, signature: one fact each
    directories       who is at this address behind this router?
    upstream          Nova's metadata API, whose answer goes back byte for byte

Beside the way: ``plumbing`` lays it (rules, sockets and processes in namespaces), ``metadata_app``
can stand where Nova stands, ``lab`` builds all of it on one machine, ``commands`` are the programs.
"""
