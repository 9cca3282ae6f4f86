# SPDX-License-Identifier: Apache-2.0
"""Skips tests on a machine without IPv6 on the loopback interface."""

import socket

import pytest


def _is_usable() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(('::1', 0))
    except OSError:
        return False
    return True


needs_ipv6_loopback = pytest.mark.skipif(not _is_usable(), reason='no IPv6 on lo: enable net.ipv6.conf.lo')
