# SPDX-License-Identifier: Apache-2.0
"""Caches of a worker process, and the cache that workers and hosts share.

Rule 1: every entry has its own lifetime (``local.Ttl``): first fresh, then stale. After its lifetime an entry is never
returned, even if it has not been removed yet.
Rule 2: errors are not cached.
Rule 3: this package does not interpret keys and values. Their meaning is defined by the caller.

``local`` is the cache of one worker. It is a dict, and a hit takes a microsecond. ``shared`` is the cache of several
workers: memcached or Redis, if ``cache_url`` names a server. ``single_flight`` merges concurrent loads of one key, and
serves a stale entry while the source is unavailable. ``process_shared`` is a pause that the workers of an agent share.
"""
