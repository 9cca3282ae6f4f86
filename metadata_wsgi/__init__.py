# SPDX-License-Identifier: Apache-2.0
"""Serves http://169.254.169.254: finds the instance that sent a request and returns that instance's metadata from Nova.

The packages in the order in which a request passes through them::

    server            HTTP server of the namespace proxy and the agent: accepts connections, parses requests
    namespace_proxy   adds the client's address and the router's id to the request, and sends it to the agent
    pipeline          loads the agent's filters from the paste file and checks their order
    filters           the filters: source of the request, instance, signature, and optional ones
    lookup            finds the instance with an address behind a router, in Neutron or in a file
    cache             caches of a worker, and the cache that workers and hosts share
    nova_proxy        sends the signed request to Nova's metadata API and returns the response unchanged
    http              HTTP client, retries, circuit breaker, header names, error responses

The other packages::

    cli               the programs and commands
    config            reads configuration files
    failures          recent failures of each worker, for status and report
    inventory         a small cloud without OpenStack, in a YAML file
    keeper            root process that opens the listening sockets in namespaces and sends them to workers
    lab               a cloud on one machine
    metadata_service  a metadata API from the inventory, instead of Nova's
    metrics           publishes the metrics of the workers for Prometheus
    net               addresses, listening sockets, name resolution
    netns             attaches a namespace: rules, addresses, processes
    privileges        user, capabilities and system call filter of the workers

Every timeout, count and size of server and HTTP client is in ``limits.py``.
"""
