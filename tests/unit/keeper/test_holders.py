# SPDX-License-Identifier: Apache-2.0
"""Requests to holders, over real FIFOs."""

import errno
import itertools
import os

import pytest

from metadata_wsgi.keeper import holders
from metadata_wsgi.keeper.holders import Holders
from tests.fakes import FakeClock


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / 'holders'
    path.mkdir(mode=0o700)
    return path


def holder(directory, id_):
    """A FIFO with a reader, as a holder has it; returns the descriptor."""
    os.mkfifo(directory / id_)
    return os.open(directory / id_, os.O_RDWR | os.O_NONBLOCK)


def read(fd):
    try:
        return os.read(fd, 100)
    except BlockingIOError:
        return b''


def test_sockets_that_are_not_registered_are_requested_after_an_interval(directory):
    clock, first, second = FakeClock(), holder(directory, 'a'), holder(directory, 'b')
    found = Holders(str(directory.parent), clock)
    assert found.request_sockets(set) == []
    clock.sleep(holders.REQUEST_INTERVAL_S)
    assert found.request_sockets(lambda: {'a'}) == ['b']
    assert (read(first), read(second)) == (b'', b'again\n')
    assert found.request_sockets(set) == []


def test_at_most_a_batch_of_sockets_is_requested_at_a_time(directory):
    clock = FakeClock()
    fds = [holder(directory, f'{number:03}') for number in range(holders.BATCH + 5)]
    found = Holders(str(directory.parent), clock)
    asked = set()
    for expected in (holders.BATCH, 5):
        clock.sleep(holders.REQUEST_INTERVAL_S)
        now = found.request_sockets(asked.copy)
        assert len(now) == expected
        asked.update(now)
    assert len(asked) == len(fds)


def test_holders_that_never_register_do_not_keep_others_from_a_request(directory):
    clock = FakeClock()
    fds = [holder(directory, f'{number:03}') for number in range(holders.BATCH + 1)]
    found = Holders(str(directory.parent), clock)
    requested = []
    for _ in range(2):
        clock.sleep(holders.REQUEST_INTERVAL_S)
        requested += found.request_sockets(set)
    assert set(requested) == {f'{number:03}' for number in range(len(fds))}


def test_requests_to_a_holder_that_does_not_register_become_rarer(directory):
    clock, fd = FakeClock(), holder(directory, 'a')
    found = Holders(str(directory.parent), clock)
    times = []
    for _ in range(100):
        clock.sleep(holders.REQUEST_INTERVAL_S)
        times += [clock()] * len(found.request_sockets(set))
    between = [later - former for former, later in itertools.pairwise(times)]
    assert between == sorted(between)
    assert between[:2] == [holders.REQUEST_INTERVAL_S, 2 * holders.REQUEST_INTERVAL_S]
    assert between[-1] == holders.MAX_REQUEST_INTERVAL_S
    assert read(fd) == b'again\n' * len(times)


def test_a_holder_whose_sockets_were_registered_meanwhile_gets_the_next_request_at_once(directory):
    clock = FakeClock()
    holder(directory, 'a')
    found = Holders(str(directory.parent), clock)
    for registered in [set()] * 20 + [{'a'}]:
        clock.sleep(holders.REQUEST_INTERVAL_S)
        found.request_sockets(lambda registered=registered: registered)
    clock.sleep(holders.REQUEST_INTERVAL_S)
    assert found.request_sockets(set) == ['a']


def test_the_fifo_of_a_holder_that_was_killed_is_removed(directory):
    clock = FakeClock()
    os.mkfifo(directory / 'a')
    found = Holders(str(directory.parent), clock)
    clock.sleep(holders.REQUEST_INTERVAL_S)
    assert found.request_sockets(set) == []
    assert found.ids() == []


def test_a_holder_is_ended(directory):
    fd = holder(directory, 'a')
    found = Holders(str(directory.parent))
    found.end('a')
    found.end('unknown')
    assert read(fd) == b'end\n'


def test_a_holder_with_another_fifo_is_replaced(directory):
    os.mkfifo(directory / 'a')
    inode = (directory / 'a').stat().st_ino
    holders = Holders(str(directory.parent))
    assert not holders.is_replaced('a', inode)
    assert holders.is_replaced('a', inode + 1)
    # A program of an earlier version sends no inode. Without a FIFO there is no newer holder.
    assert not holders.is_replaced('a', None)
    assert not holders.is_replaced('b', inode)
    assert not holders.is_replaced('../a', inode)


@pytest.mark.parametrize('mode', [0o770, 0o707])
def test_a_directory_that_others_may_write_is_not_trusted(directory, mode):
    fd = holder(directory, 'a')
    directory.chmod(mode)
    found = Holders(str(directory.parent))
    found.end('a')
    assert (found.ids(), read(fd)) == ([], b'')


def test_links_and_files_in_the_directory_are_not_followed(directory, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    fd = holder(tmp_path / 'elsewhere', 'target')
    (directory / 'link').symlink_to(tmp_path / 'elsewhere' / 'target')
    (directory / 'file').write_text('x')
    found = Holders(str(directory.parent))
    for name in ('link', 'file', '../elsewhere/target'):
        found.end(name)
    assert (read(fd), (directory / 'file').read_text()) == (b'', 'x')


def test_without_holders_nothing_is_requested(tmp_path):
    clock = FakeClock()
    found = Holders(str(tmp_path), clock)
    clock.sleep(holders.REQUEST_INTERVAL_S)
    assert found.request_sockets(set) == []


def test_a_fifo_that_is_removed_meanwhile_does_not_end_the_keeper(directory, monkeypatch):
    """A holder that gets SIGTERM removes its FIFO while the keeper looks."""
    clock = FakeClock()
    os.mkfifo(directory / 'a')
    found = Holders(str(directory.parent), clock)
    clock.sleep(holders.REQUEST_INTERVAL_S)
    opened = os.open

    def remove_after(name, *args, **kwargs):
        try:
            return opened(name, *args, **kwargs)
        finally:
            if name == 'a':
                os.unlink(directory / 'a')

    monkeypatch.setattr(os, 'open', remove_after)
    assert found.request_sockets(set) == []


def test_an_id_that_is_no_name_costs_no_descriptor(directory):
    found = Holders(str(directory.parent), FakeClock())
    before = os.listdir('/proc/self/fd')
    found.end('../a')
    assert os.listdir('/proc/self/fd') == before


@pytest.mark.parametrize('number', [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_holder_is_not_taken_for_gone_because_descriptors_or_memory_are_exhausted(directory, monkeypatch, number):
    """A --release that came late closed the sockets of the newer holder."""
    found, fd = Holders(str(directory.parent)), holder(directory, 'a')
    with monkeypatch.context() as patch:

        def fail(*args, **kwargs):
            raise OSError(number, os.strerror(number))

        patch.setattr(os, 'open', fail)
        for action in (lambda: found.is_replaced('a', 1), lambda: found.end('a'), found.ids):
            with pytest.raises(OSError, match=os.strerror(number)):
                action()
    assert (found.ids(), read(fd)) == (['a'], b'')
