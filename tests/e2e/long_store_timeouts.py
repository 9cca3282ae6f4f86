# SPDX-License-Identifier: Apache-2.0
"""A filter that gives memcached and Redis much time to respond: on a busy machine a test process may wait for seconds.

The filters that are loaded after it get the longer timeouts.
"""

from metadata_wsgi.cache import shared
from metadata_wsgi.filters.optional import rate_limit

LONG_TIMEOUT_S = 20.0


def filter_factory(global_conf):
    shared.TIMEOUT_S = rate_limit.STORE_TIMEOUT_S = LONG_TIMEOUT_S
    return lambda app: app


def with_long_store_timeouts(paste_file):
    """Put the filter first into the pipelines of ``paste_file``; returns ``paste_file``."""
    text = paste_file.read_text().replace('pipeline = catch_errors', 'pipeline = long_store_timeouts catch_errors')
    assert 'long_store_timeouts' in text
    text += '\n[filter:long_store_timeouts]\npaste.filter_factory = tests.e2e.long_store_timeouts:filter_factory\n'
    paste_file.write_text(text)
    return paste_file
