# SPDX-License-Identifier: Apache-2.0
"""Neutron's lock on a namespace's iptables, held against another process as oslo.concurrency does."""

import fcntl
import os
import subprocess
import sys

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns.neutron_lock import NeutronIptablesLock
from tests.fakes import FakeClock

# As fasteners' InterProcessLock, which is the external lock of oslo.concurrency.
HOLD = """
import fcntl, sys
file = open(sys.argv[1], 'a')
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print('held', flush=True)
sys.stdin.read()
"""


def hold(path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    is_held = process.stdout.readline() == b'held\n'
    return process, is_held


def release(process):
    process.communicate(timeout=20)


def test_lock_excludes_neutron(tmp_path):
    path = tmp_path / 'neutron-iptables-qrouter-1'
    with NeutronIptablesLock(str(tmp_path))('qrouter-1'):
        process, is_held = hold(path)
        release(process)
        assert not is_held
    process, is_held = hold(path)
    release(process)
    assert is_held


def test_lock_that_neutron_holds_is_a_timeout(tmp_path):
    process, is_held = hold(tmp_path / 'neutron-iptables-qrouter-1')
    assert is_held
    clock = FakeClock()
    lock = NeutronIptablesLock(str(tmp_path), timeout_s=5, clock=clock, sleep=clock.sleep)
    try:
        with pytest.raises(NetnsError, match='qrouter-1 is still held by another process after 5 s'), lock('qrouter-1'):
            pass
        with lock('qrouter-2'):
            pass
    finally:
        release(process)
    with lock('qrouter-1'):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason='gives a file to another user: run it as root')
def test_new_lock_file_belongs_to_the_owner_of_the_directory(tmp_path):
    """Otherwise Neutron's agent could not open it."""
    os.chown(tmp_path, 4321, 4322)
    with NeutronIptablesLock(str(tmp_path))('qrouter-1'):
        pass
    status = (tmp_path / 'neutron-iptables-qrouter-1').stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4321, 4322, 0o644)


def test_lock_path_that_is_missing_is_an_error(tmp_path):
    lock = NeutronIptablesLock(str(tmp_path / 'none'))
    with pytest.raises(NetnsError, match='none/neutron-iptables-qrouter-1: No such file'), lock('qrouter-1'):
        pass


def test_link_in_place_of_the_lock_file_is_not_followed(tmp_path):
    (tmp_path / 'neutron-iptables-qrouter-1').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(NetnsError, match='symbolic links'), NeutronIptablesLock(str(tmp_path))('qrouter-1'):
        pass
    assert not (tmp_path / 'elsewhere').exists()


def test_without_a_lock_path_no_file_is_opened(tmp_path):
    with NeutronIptablesLock('')('qrouter-1'):
        assert fcntl.LOCK_EX
    assert list(tmp_path.iterdir()) == []
