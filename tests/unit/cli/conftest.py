# SPDX-License-Identifier: Apache-2.0
"""Programs that a test runs in its own process set logging up. Later tests must not see that."""

import logging

import pytest


@pytest.fixture(autouse=True)
def logging_as_before():
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.setLogRecordFactory(factory)
