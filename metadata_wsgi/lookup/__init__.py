# SPDX-License-Identifier: Apache-2.0
"""Lookups: which instances have an address behind a router or on a network.

``protocol`` is the interface of a lookup and its loader, ``neutron`` and ``static`` are two lookups, ``cached`` puts a
cache before one, ``resolve`` turns the result of a lookup into the one instance of a request or an error response.
"""
