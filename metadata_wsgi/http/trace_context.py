# SPDX-License-Identifier: Apache-2.0
"""The header ``traceparent`` of W3C Trace Context: which values are valid (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re

# Version, trace id, id of the caller's span, flags.
_VERSION_00 = re.compile(r'00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}')


def is_valid(traceparent: str) -> bool:
    """Whether ``traceparent`` has the format of version 00, the only version that exists.

    Such a value consists of hexadecimal digits and hyphens, so it is safe in a header and in a log line.
    """
    return _VERSION_00.fullmatch(traceparent) is not None
