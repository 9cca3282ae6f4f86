# SPDX-License-Identifier: Apache-2.0
"""For all tests: the tests of root are isolated from the host, and tests under load are not traced."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import settings

from tests.open_tmp_path import reachable_path, tmp_path_factory

__all__ = ['reachable_path', 'tmp_path_factory']

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000

MOUNTS_OF_HOST = os.readlink('/proc/self/ns/mnt')
"""The mount namespace in which this process was started."""

# On a busy machine an example may take any time.
settings.register_profile('no deadline', deadline=None)
settings.load_profile('no deadline')

# Coverage sets this variable. A Python program that inherits the variable traces itself.
PROGRAMS_ARE_TRACED = 'COVERAGE_PROCESS_CONFIG'


NEED_THE_HOST = ('openstack', 'packages')
"""Marks of the tests that download and start services of the host. A run with such a test is not isolated."""


def pytest_configure(config):
    # Threads of this process are clients and servers of the tests: tracing them takes time and finds nothing more.
    threading.settrace(None)
    if hasattr(config, 'workerinput') and os.geteuid() == 0:
        isolate()


def pytest_collection_finish(session):
    """Isolate a run of root without pytest-xdist: tests call ``detach --all`` and ``watch``."""
    config = session.config
    need_the_host = any(item.get_closest_marker(name) for item in session.items for name in NEED_THE_HOST)
    if os.geteuid() == 0 and not hasattr(config, 'workerinput') and not config.option.collectonly and not need_the_host:
        # Without the capability no test can change the namespaces of the host.
        with contextlib.suppress(PermissionError):
            isolate()


def isolate():
    """Enter a new network namespace, with an empty /run/netns: ports and names of namespaces then cannot collide."""
    # os.unshare exists from Python 3.12 on. A thread that is started later inherits the namespaces of this one.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), 'unshare')
    os.makedirs('/run/netns', exist_ok=True)
    for command in ('mount --make-rprivate /', 'mount -t tmpfs tmpfs /run/netns', 'ip link set lo up'):
        subprocess.run(command.split(), check=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Switch coverage off for a test marked ``not_traced``, and for the programs that the test starts."""
    if item.get_closest_marker('not_traced') is None:
        return (yield)
    trace, programs = sys.gettrace(), os.environ.pop(PROGRAMS_ARE_TRACED, None)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)
        if programs is not None:
            os.environ[PROGRAMS_ARE_TRACED] = programs
