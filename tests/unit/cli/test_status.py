# SPDX-License-Identifier: Apache-2.0
"""The output of ``status`` for the keeper and for attachments. With real ones: tests/e2e and tests/netns."""

import os
import socket

import pytest

from metadata_wsgi.cli import status
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns.target import NO_WORKER, AttachTarget, KeeperEntry


class FakeKeeper:
    """The keeper's state; with ``refusal`` it raises that error."""

    def __init__(self, *kept, workers=None, refusal=''):
        self._kept = list(kept)
        self._workers = workers or {}
        self._refusal = refusal

    def entries(self):
        if self._refusal:
            raise NetnsError(self._refusal)
        return self._kept

    def workers(self):
        return self._workers


def kept(uuid, mode='shared', workers=0):
    return KeeperEntry(AttachTarget.of('router', uuid), mode, 9697, ('',), workers)


@pytest.fixture
def state_path(tmp_path):
    """A state path in which the keeper's socket exists."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / 'keeper'))
        listening.listen()
        yield str(tmp_path)


def test_status_without_a_keeper_is_well(tmp_path, capsys):
    assert status.keeper(str(tmp_path), FakeKeeper()) == ([], True)
    assert capsys.readouterr().out == 'keeper      does not run; only the modes shared and one_hop need it\n'


def test_status_of_a_keeper_with_workers(state_path, capsys):
    both = [kept('aaaa', workers=2), kept('bbbb', workers=2)]
    assert status.keeper(state_path, FakeKeeper(*both, workers={'shared': 2})) == (both, True)
    assert capsys.readouterr().out == (
        f'keeper      pid {os.getpid()} has the sockets of 2 routers and networks; '
        'workers: 2 in mode shared, 0 in mode one_hop\n'
    )


def test_status_names_a_mode_without_worker_once(state_path, capsys):
    keeper = FakeKeeper(kept('aaaa'), kept('bbbb'), kept('cccc', 'one_hop', workers=1), workers={'one_hop': 1})
    entries, is_well = status.keeper(state_path, keeper)
    assert is_well is False
    assert status.attachments(state_path, entries) is False
    out = capsys.readouterr().out
    assert out.count(NO_WORKER['shared']) == 1
    assert NO_WORKER['one_hop'] not in out
    assert 'attached    3 routers and networks, 3 of them with problems: 2 in mode shared, 1 in mode one_hop' in out
    assert out.count('there is no namespace') == 3


def test_status_of_an_unavailable_keeper(state_path, capsys):
    unavailable = FakeKeeper(
        refusal='no keeper listens at /there (Connection refused): start metadata-wsgi keeper, as root'
    )
    assert status.keeper(state_path, unavailable) == (None, False)
    out = capsys.readouterr().out
    assert out.startswith('keeper      no keeper listens at /there (Connection refused): start metadata-wsgi keeper')
    assert 'its workers continue to serve' in out


def test_status_of_a_keeper_that_ends_during_the_request(state_path, capsys):
    os.unlink(f'{state_path}/keeper')
    assert status.keeper(state_path, FakeKeeper())[1] is True
    with open(f'{state_path}/keeper', 'w'):
        assert status.keeper(state_path, FakeKeeper()) == (None, False)
    assert 'Connection refused' in capsys.readouterr().out
