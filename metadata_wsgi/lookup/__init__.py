# SPDX-License-Identifier: Apache-2.0
"""The lookups, which find the instances with an address behind a router or on a network.

``protocol`` defines the interface of a lookup and loads one. ``neutron`` and ``static`` are the two lookups. ``cached``
adds a cache to a lookup. ``request_lookup`` makes the lookup of one request: it sets the instance, or returns an error
response.
"""
