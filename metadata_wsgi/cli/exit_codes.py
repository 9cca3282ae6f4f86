# SPDX-License-Identifier: Apache-2.0
"""The exit codes of all verbs of ``metadata-wsgi``, for monitoring systems and scripts.

====  ============  ==========================================================================================
code  constant      meaning
====  ============  ==========================================================================================
0     WELL          done, or all is well
1     NOT_WELL      the action failed, or a check found a problem; the output names the reason
2     CANNOT_TELL   nothing was done, or a check has no result (wrong usage, no privileges, unusable file, bug)
130   INTERRUPTED   ended by Ctrl-C
====  ============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable

WELL, NOT_WELL, CANNOT_TELL, INTERRUPTED = 0, 1, 2, 130


def worst(codes: Iterable[int]) -> int:
    """NOT_WELL if anything is not well, else CANNOT_TELL if anything is unknown, else WELL."""
    found = set(codes)
    return next((code for code in (NOT_WELL, CANNOT_TELL) if code in found), WELL)
