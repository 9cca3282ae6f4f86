# SPDX-License-Identifier: Apache-2.0
"""A deliberate bug, for the test of the checker: a lookup cache whose key lacks the router and the network.

For ``paste.filter_factory = tests.soak.cache_without_router:filter_factory`` in a paste file.
"""

from metadata_wsgi.filters.optional import lookup_cache
from metadata_wsgi.lookup import cached


class CacheWithoutRouter(cached.CachedLookup):
    """Finds every address behind the router that asked for it first."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._first = {}

    def cached(self, source):
        return super().cached(self._confused(source))

    def find(self, source, deadline):
        return super().find(self._confused(source), deadline)

    def _confused(self, source):
        return self._first.setdefault(source.address, source)


def filter_factory(global_conf):
    original = cached.CachedLookup
    cached.CachedLookup = CacheWithoutRouter
    try:
        return lookup_cache.filter_factory(global_conf)
    finally:
        cached.CachedLookup = original
