# SPDX-License-Identifier: Apache-2.0
"""Plugin of coverage: keeps a traced program of CPython 3.11 from hanging when one of its threads ends.

The hang has four steps:

1. Coverage with ``concurrency = gevent`` keeps data for each greenlet in a ``WeakKeyDictionary``. So every thread has a
   greenlet.
2. When a thread ends, the library greenlet deletes the thread's greenlet in a pending call (``Py_AddPendingCall``) of
   the main thread. The dictionary's callback is a Python function, so a Python function is called during a pending
   call.
3. If a second thread ends meanwhile, another pending call waits. CPython handles no pending call during another, and
   the flag that requests the call stays set.
4. While a trace function is set, CPython 3.11 repeats the first instruction of a function until this flag is cleared:
   for ever. CPython issue 118095 describes the flag; other versions do not repeat the instruction.

Coverage's issues 1950 and 2137 report hangs of programs with gevent or many threads, without a cause.

With this plugin the callback is not a Python function, so step 2 cannot happen.
"""

import weakref
from typing import Any


class WeakKeyDictionary(weakref.WeakKeyDictionary):
    """Notes a dead key by ``list.append``, as the base class does during an iteration, and never deletes the item.

    The items of dead keys stay in memory: one for each greenlet of a test.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._remove = self._pending_removals.append


def coverage_init(registry: Any, options: Any) -> None:
    """Called by coverage before it traces. The tracer of coverage takes the class from the module ``weakref``."""
    weakref.WeakKeyDictionary = WeakKeyDictionary  # type: ignore[misc]
