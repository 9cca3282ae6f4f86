# SPDX-License-Identifier: Apache-2.0
import logging
import threading

import pytest

from metadata_wsgi.cli.main import main
from metadata_wsgi.cli.reconciler import Watching
from metadata_wsgi.cli.watch import Verbs
from metadata_wsgi.errors import ConfigError, NetnsError
from metadata_wsgi.netns import lock
from metadata_wsgi.netns.target import NOBODY_SERVES, Kept, Place
from tests.fakes import FakeClock

R1, R2, N1 = ('router', 'router-1'), ('router', 'router-2'), ('network', 'network-1')


class Host:
    """Namespaces by place, what the keeper holds, and what was done; ``complaints`` are given for a place."""

    def __init__(self, *there):
        self.there = dict.fromkeys(there, 1)
        self.complaints = {}
        self.kept = set()
        self.done = []
        self.clock = FakeClock()
        self.watching = Watching(lambda: dict(self.there), self, again_s=60, clock=self.clock)

    def attach(self, places):
        return self._do('attach', places)

    def detach(self, places):
        return self._do('detach', places)

    def held(self):
        return None if self.kept is None else set(self.kept)

    def _do(self, verb, places):
        assert places
        self.done += [(verb, uuid) for _, uuid in places]
        return {place: self.complaints[place] for place in places if place in self.complaints}

    def once(self):
        """What is done now."""
        self.done.clear()
        self.watching.once()
        return list(self.done)


def said(caplog):
    return [record.getMessage() for record in caplog.records]


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


def test_a_namespace_that_was_made_anew_is_attached_again_and_that_is_said(caplog):
    host = Host(R1, R2)
    with caplog.at_level(logging.INFO):
        host.once()
        caplog.clear()
        host.there[R1] = 2
        assert host.once() == [('attach', 'router-1')]
    assert said(caplog) == ['router router-1: its namespace was made anew', 'router router-1: attached']
    assert host.once() == []


def test_what_the_keeper_lost_is_attached_again_and_that_is_said(caplog):
    host = Host(R1, R2)
    host.kept = {R1}
    with caplog.at_level(logging.INFO):
        host.once()
        caplog.clear()
        host.kept = set()
        assert host.once() == [('attach', 'router-1')]
    assert said(caplog) == ['router router-1: the keeper has no socket of it any more', 'router router-1: attached']
    assert host.once() == []


def test_a_keeper_that_is_away_has_lost_nothing_until_it_is_back():
    host = Host(R1)
    host.kept = {R1}
    host.once()
    host.kept = None
    assert host.once() == []
    host.kept = set()
    assert host.once() == [('attach', 'router-1')]


def test_what_left_the_keepers_hands_by_our_own_doing_is_not_lost():
    host = Host(R1)
    host.kept = {R1}
    host.once()

    def attach(places):
        host.kept = set()
        return {}

    host.clock.sleep(61)
    host.attach = attach
    host.once()
    del host.attach
    assert host.once() == []


def test_one_fault_of_many_is_one_line(caplog):
    routers = [('router', f'router-{number:02}') for number in range(20)]
    host = Host(*routers)
    host.complaints = dict.fromkeys(routers, 'no keeper answers')
    host.once()
    assert said(caplog) == ['router router-00: no keeper answers (and 19 more)']
    caplog.clear()
    with caplog.at_level(logging.INFO):
        host.complaints = {}
        host.once()
    assert len(said(caplog)) == 20


def test_what_could_only_half_be_attached_is_detached_when_it_goes():
    host = Host(R1)
    host.complaints = {R1: 'no proxy'}
    host.once()
    host.there, host.complaints = {}, {}
    assert host.once() == [('detach', 'router-1')]


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
    assert said(caplog) == [
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
        before = len(caplog.records)
        host.clock.sleep(61)
        del host.there[R2]
        assert host.once() == [('detach', 'router-2'), ('attach', 'router-1')]
    assert said(caplog)[before:] == ['router router-2: detached']
    assert host.once() == []


class Keeper:
    """What a keeper says: the modes of ids that it keeps; away if None."""

    def __init__(self, modes):
        self.modes = modes
        self.looks = 0
        self.followers = {}

    def kept(self):
        self.looks += 1
        if self.modes is None:
            raise NetnsError('no keeper answers')
        return [Kept(Place.of('router', uuid), mode, 9697, ('',), 0) for uuid, mode in self.modes.items()]

    def workers(self):
        if self.modes is None:
            raise NetnsError('no keeper answers')
        return self.followers


@pytest.fixture
def verbs(tmp_path):
    """Of a host without namespaces: what is tried to attach is refused for that."""

    def verbs(keeper, *options):
        return Verbs([f'--state-path={tmp_path}'], [*options], keeping=keeper)

    return verbs


def test_what_the_keeper_holds_is_told_by_place_and_nothing_while_it_is_away(verbs):
    keeper = Keeper({'router-1': 'shared'})
    assert verbs(keeper).held() == {R1}
    keeper.modes = None
    assert verbs(keeper).held() is None


def test_while_the_keeper_is_away_only_those_are_tried_whose_mode_is_known(verbs):
    keeper = Keeper({'router-1': 'one_hop'})
    one = verbs(keeper)
    one.held()
    keeper.modes = None
    complaints = one.attach([R1, R2])
    assert 'there is no namespace qrouter-router-1' in complaints[R1]
    assert complaints[R2] == 'no keeper answers'
    assert 'there is no namespace qrouter-router-2' in verbs(keeper, '--mode', 'shared').attach([R2])[R2]


def test_that_nobody_serves_a_mode_is_said_until_somebody_does_and_then_again(verbs, caplog):
    keeper = Keeper({'router-1': 'shared'})
    one = verbs(keeper)
    for followers in ({}, {}, {'shared': 1}, {}):
        keeper.followers = followers
        one.attach([R1])
    assert said(caplog) == [NOBODY_SERVES['shared']] * 2


def test_what_a_verb_is_half_way_through_is_not_looked_at(verbs, tmp_path):
    keeper = Keeper({'router-1': 'shared'})
    one = verbs(keeper)
    with lock.alone(str(tmp_path)):
        attaching = threading.Thread(target=one.attach, args=([R1],))
        attaching.start()
        attaching.join(0.1)
        assert keeper.looks == 0
    attaching.join()
    assert keeper.looks == 1


def test_a_mark_that_marks_nothing_is_refused_at_start(verbs):
    with pytest.raises(ConfigError, match='mark 0x0'):
        verbs(Keeper({}), '--mark', '0x0')


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
