# SPDX-License-Identifier: Apache-2.0
"""Deprecated name of :mod:`metadata_wsgi.pipeline.environ_keys`, for filters that were written for version 1.0."""

from __future__ import annotations

import warnings

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.pipeline.environ_keys import CLIENT_IS_PROXY, DEADLINE, INSTANCE, NAMESPACE, SOURCE, Instance, Source

__all__ = ['DEADLINE', 'FORWARDED', 'INSTANCE', 'NAMESPACE', 'SOURCE', 'Deadline', 'Instance', 'Source']

FORWARDED = CLIENT_IS_PROXY

warnings.warn(
    'metadata_wsgi.context is deprecated: import metadata_wsgi.pipeline.environ_keys', DeprecationWarning, stacklevel=2
)
