# SPDX-License-Identifier: Apache-2.0
"""Does the directory let the agent see what it must? Asked when the agent starts, by a worker, beside the guests.

A role in Quantum that may see nothing is answered with empty lists. Without this the first guest whose address is not
found would be the one to find out. A directory that is away is asked again until it is there: nothing waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup import protocol
from metadata_wsgi.pipeline import order

LOG = logging.getLogger(__name__)

PROBE_S = 10.0
AGAIN_S = 30.0
"""Many agents may be waiting for one Quantum."""


def look_beside(app: Any) -> None:
    """Look in a thread of its own."""
    threading.Thread(target=look, args=(app,), name='sight', daemon=True).start()


def look(app: Any, *, sleep: Callable[[float], object] = lambda seconds: time.sleep(seconds)) -> None:
    """Ask the directory of the pipeline ``app`` until it has said yes or no, and log what it said."""
    # Where several filters have one it is the same. Sleep is looked up late: gevent changes it in a worker.
    probe = next(filter(None, map(protocol.probe_of, order.chain(app))), None)
    if probe:
        _ask(probe, sleep)


def _ask(probe: Callable[[Deadline], Any], sleep: Callable[[float], object]) -> None:
    said = False
    while True:
        try:
            LOG.info('%s', probe(Deadline.after(PROBE_S)))
        except LookupUnavailable as error:
            if not said:
                LOG.warning('Cannot find out yet whether the directory shows every guest: %s', error)
            said = True
            sleep(AGAIN_S)
        except InstanceLookupError as error:
            LOG.error('No guest will be found, all will be answered 503: %s', error)
            return
        else:
            return
