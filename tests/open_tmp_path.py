# SPDX-License-Identifier: Apache-2.0
"""pytest's temporary directories, open for other users to pass through.

Programs that root starts serve as an unprivileged user, who must reach the agent's socket in ``tmp_path``. pytest makes
its directories with mode 0700, and sets the mode of /tmp/pytest-of-root to 0700 again whenever another run starts.
"""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def tmp_path_factory(tmp_path_factory):
    if os.geteuid() != 0:
        yield tmp_path_factory
        return
    with tempfile.TemporaryDirectory(prefix='metadata-wsgi-tests-', ignore_cleanup_errors=True) as base:
        os.chmod(base, 0o711)
        mktemp = tmp_path_factory.mktemp

        def open_mktemp(*args, **kwargs):
            path = mktemp(*args, **kwargs)
            path.chmod(0o711)
            return path

        # No public option sets the base directory and still gives each run a directory of its own.
        tmp_path_factory._basetemp = Path(base)
        tmp_path_factory.mktemp = open_mktemp
        yield tmp_path_factory


@pytest.fixture
def reachable_path():
    """A temporary directory that every user may reach. No mode of a directory outside it is changed."""
    base = Path(tempfile.gettempdir()).resolve()
    for directory in (base, *base.parents):
        if not directory.stat().st_mode & 0o001:
            pytest.skip(f'other users may not enter {directory}: set TMPDIR')
    with tempfile.TemporaryDirectory(prefix='metadata-wsgi-tests-', dir=base) as path:
        os.chmod(path, 0o711)
        yield Path(path)
