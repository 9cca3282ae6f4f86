# SPDX-License-Identifier: Apache-2.0
"""Imports modules in the master, so that workers share the memory of the modules; tunes the garbage collection."""

from __future__ import annotations

import gc
import importlib
import logging

from metadata_wsgi import limits

LOG = logging.getLogger(__name__)

PRELOAD_MODULES = (
    *('gevent.resolver.thread', 'gevent.resolver._addresses', 'gevent.threadpool', 'gevent._threading', 'gevent.util'),
    *('gevent.ssl', 'gevent.subprocess', 'gevent.threading', 'gevent.selectors', 'gevent.signal', 'gevent.local'),
    *('concurrent.futures.thread', 'encodings.idna', 'netrc', 'stringprep'),
)
"""Modules that are otherwise imported by gevent's patching, or by libraries during the first request.

The master imports them before it forks, so that workers share the memory of the modules. A worker may be unable to
import them later: its user may have no access to Python's directory, and after an upgrade the files there are of
another version. Some are private modules of gevent. A module that the installed version does not have is skipped.
"""


def import_modules() -> None:
    """Import PRELOAD_MODULES."""
    for name in PRELOAD_MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            LOG.debug('Not loaded before the workers are forked: %s', error)


def tune_gc() -> None:
    """Exclude the loaded objects from Python's garbage collection, and collect less often.

    Called in a worker after it has loaded the application. The loaded objects live as long as the worker, and a request
    creates hardly any reference cycles. So frequent collection would find nothing.
    """
    freeze_gc()
    gc.set_threshold(limits.GC_THRESHOLD)


def freeze_gc() -> None:
    """Exclude all present objects from garbage collection.

    The garbage collector writes to each object. After a fork each write copies a page that the processes share.
    """
    gc.collect()
    gc.freeze()
