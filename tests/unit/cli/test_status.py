# SPDX-License-Identifier: Apache-2.0
"""What ``status`` says of the keeper and of what is attached; of real ones: tests/e2e and tests/netns."""

import os
import socket

import pytest

from metadata_wsgi.cli import status
from metadata_wsgi.errors import NetnsError
from metadata_wsgi.netns.target import NOBODY_SERVES, Kept, Place


class Keeper:
    """What a keeper says; it refuses where ``refusal`` is given."""

    def __init__(self, *kept, workers=None, refusal=''):
        self._kept = list(kept)
        self._workers = workers or {}
        self._refusal = refusal

    def kept(self):
        if self._refusal:
            raise NetnsError(self._refusal)
        return self._kept

    def workers(self):
        return self._workers


def kept(uuid, mode='shared', workers=0):
    return Kept(Place.of('router', uuid), mode, 9697, ('',), workers)


@pytest.fixture
def state_path(tmp_path):
    """With a socket where the keeper is asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / 'keeper'))
        listening.listen()
        yield str(tmp_path)


def test_where_no_keeper_was_it_is_not_missed(tmp_path, capsys):
    assert status.keeper(str(tmp_path), Keeper()) == ([], True)
    assert capsys.readouterr().out == 'keeper      there is none; only the modes shared and one_hop need it\n'


def test_a_keeper_whom_workers_follow(state_path, capsys):
    both = [kept('aaaa', workers=2), kept('bbbb', workers=2)]
    assert status.keeper(state_path, Keeper(*both, workers={'shared': 2})) == (both, True)
    assert capsys.readouterr().out == (
        f'keeper      pid {os.getpid()} keeps the sockets of 2 routers and networks; '
        'workers: 2 in mode shared, 0 in mode one_hop\n'
    )


def test_a_mode_that_nobody_serves_is_said_once(state_path, capsys):
    keeper = Keeper(kept('aaaa'), kept('bbbb'), kept('cccc', 'one_hop', workers=1), workers={'one_hop': 1})
    there, well = status.keeper(state_path, keeper)
    assert well is False
    assert status.attachments(state_path, there) is False
    out = capsys.readouterr().out
    assert out.count(NOBODY_SERVES['shared']) == 1
    assert NOBODY_SERVES['one_hop'] not in out
    assert 'attached    3 routers and networks, 3 of them only half: 2 in mode shared, 1 in mode one_hop' in out
    assert out.count('there is no namespace') == 3


def test_a_keeper_that_is_away(state_path, capsys):
    away = Keeper(refusal='no keeper answers at /there (Connection refused): start metadata-wsgi keeper, as root')
    assert status.keeper(state_path, away) == (None, False)
    out = capsys.readouterr().out
    assert out.startswith('keeper      no keeper answers at /there (Connection refused): start metadata-wsgi keeper')
    assert 'whoever serves its sockets goes on' in out


def test_a_keeper_that_went_while_it_was_asked(state_path, capsys):
    os.unlink(f'{state_path}/keeper')
    assert status.keeper(state_path, Keeper())[1] is True
    with open(f'{state_path}/keeper', 'w'):
        assert status.keeper(state_path, Keeper()) == (None, False)
    assert 'Connection refused' in capsys.readouterr().out
