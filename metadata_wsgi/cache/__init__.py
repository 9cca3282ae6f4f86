# SPDX-License-Identifier: Apache-2.0
"""Caches of a worker process, and the cache that workers and hosts share.

Rule 1: every entry has its own expiry time. An expired entry is never returned, whether or not it was removed.
Rule 2: errors are not cached.
Rule 3: this package knows no request; keys and values belong to the caller.

``local`` is the cache of one worker, a dict: a hit takes a microsecond. ``shared`` is memcached or Redis behind it,
where ``cache_url`` names one. ``single_flight`` merges concurrent loads of one key, and serves a stale entry while
the source is unavailable.
"""
