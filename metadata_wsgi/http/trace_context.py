# SPDX-License-Identifier: Apache-2.0
"""The header ``traceparent`` of W3C Trace Context: which values are valid (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re

# Version, trace id, id of the caller's span, flags.
_VERSION_00 = re.compile(r'00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}')


def is_valid(traceparent: str) -> bool:
    """Whether it is a ``traceparent`` of version 00, the only one that exists: a client chooses hexadecimal digits."""
    return _VERSION_00.fullmatch(traceparent) is not None
