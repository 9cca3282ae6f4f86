# SPDX-License-Identifier: Apache-2.0
import logging

import pytest

from metadata_wsgi.commands.metadata_wsgi import main
from metadata_wsgi.commands.watch import Watching
from tests.fakes import FakeClock

R1, R2, N1 = ('router', 'router-1'), ('router', 'router-2'), ('network', 'network-1')


class Host:
    """Namespaces by place, and what was done to them; ``complaints`` are given for a place."""

    def __init__(self, *there):
        self.there = dict.fromkeys(there, 1)
        self.complaints = {}
        self.done = []
        self.clock = FakeClock()
        self.watching = Watching(lambda: dict(self.there), self, again_s=60, clock=self.clock)

    def attach(self, place):
        self.done.append(('attach', place[1]))
        return self.complaints.get(place, '')

    def detach(self, place):
        self.done.append(('detach', place[1]))
        return self.complaints.get(place, '')

    def once(self):
        """What is done now."""
        self.done.clear()
        self.watching.once()
        return list(self.done)


def test_what_is_there_is_attached_once():
    host = Host(R1, N1)
    assert host.once() == [('attach', 'network-1'), ('attach', 'router-1')]
    assert host.once() == []


def test_what_appears_is_attached_and_what_goes_is_detached():
    host = Host(R1)
    host.once()
    host.there = {R2: 1}
    assert host.once() == [('detach', 'router-1'), ('attach', 'router-2')]
    assert host.once() == []


def test_a_namespace_that_was_made_anew_is_attached_again():
    host = Host(R1)
    host.once()
    host.there = {R1: 2}
    assert host.once() == [('attach', 'router-1')]


def test_what_was_gone_before_it_began_is_detached():
    host = Host(R2)
    host.watching.begin([R1])
    assert host.done == [('detach', 'router-1'), ('attach', 'router-2')]


def test_a_leftover_that_is_back_is_adopted():
    host = Host(R1)
    host.watching.begin([R1])
    assert host.done == [('attach', 'router-1')]


def test_what_fails_is_tried_again_and_each_reason_said_once(caplog):
    host = Host(N1)
    host.complaints = {N1: 'no interface'}
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert host.once() == [('attach', 'network-1')]
        host.complaints = {N1: 'no address'}
        host.once()
        host.complaints = {}
        host.once()
    assert [record.getMessage() for record in caplog.records] == [
        'network network-1: no interface',
        'network network-1: no address',
        'network network-1: attached',
    ]


def test_a_detach_that_fails_is_tried_again():
    host = Host(R1)
    host.once()
    host.there, host.complaints = {}, {R1: 'it does not end'}
    assert host.once() == host.once() == [('detach', 'router-1')]
    host.complaints = {}
    assert host.once() == [('detach', 'router-1')]
    assert host.once() == []


def test_every_minute_all_are_attached_again_and_nothing_is_said_of_it(caplog):
    host = Host(R1, R2)
    with caplog.at_level(logging.INFO):
        host.once()
        said = len(caplog.records)
        host.clock.sleep(61)
        del host.there[R2]
        assert host.once() == [('detach', 'router-2'), ('attach', 'router-1')]
    assert [record.getMessage() for record in caplog.records[said:]] == ['router router-2: detached']
    assert host.once() == []


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['--interval', '0'], "'0' is no number of seconds"),
        (['--interval', 'x'], "'x' is no number of seconds"),
        (['--only', 'guest'], 'invalid choice'),
    ],
)
def test_a_wrong_command_line_ends_with_2(argv, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(['watch', *argv])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
