# SPDX-License-Identifier: Apache-2.0
"""The check at the agent's start: whether Nova and the lookup can serve every instance.

One worker checks two conditions in the background, so no request waits:

- Nova must check signatures with the agent's shared secret (``nova_proxy.probe``). If not, all instances get 404 or
  403.
- The lookup must show every instance to the agent. If the agent's role is not allowed to see ports, Neutron returns an
  empty list and no error. While the lookup is unavailable, the check is retried.

Without this check an operator would notice such a fault only when an instance boots without metadata.
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

PROBE_TIMEOUT_S = 10.0
RETRY_INTERVAL_S = 30.0
"""The interval is long, because many agents may wait for the same Neutron."""


def check_in_background(app: Any) -> None:
    """Start :func:`check` in a thread."""
    threading.Thread(target=check, args=(app,), name='visibility_check', daemon=True).start()


def check(app: Any, *, sleep: Callable[[float], object] = lambda seconds: time.sleep(seconds)) -> None:
    """Check Nova once, then check the lookup of the pipeline ``app`` until there is a result. Log both results."""
    # Imported in the worker, after gevent has patched the modules that it uses.
    from metadata_wsgi.nova_proxy import probe as nova_probe

    for problem in nova_probe.check(app):
        LOG.error('%s', problem)
    # The filters lookup_cache and instance may each have a lookup. Both are made from the same options.
    probe = next(filter(None, map(protocol.probe_of, order.chain(app))), None)
    if probe:
        _probe_until_result(probe, sleep)


def _probe_until_result(probe: Callable[[Deadline], Any], sleep: Callable[[float], object]) -> None:
    is_first_attempt = True
    while True:
        try:
            result = probe(Deadline.after(PROBE_TIMEOUT_S))
            LOG.log(logging.INFO if getattr(result, 'is_likely', True) else logging.WARNING, '%s', result)
        except LookupUnavailable as error:
            if is_first_attempt:
                LOG.warning('Cannot check yet whether the lookup directory shows every instance: %s', error)
            is_first_attempt = False
            sleep(RETRY_INTERVAL_S)
        except InstanceLookupError as error:
            LOG.error('No instance can be found, every request gets 503: %s', error)
            return
        else:
            return
