# SPDX-License-Identifier: Apache-2.0
import logging
import os
import threading

import pytest

from metadata_wsgi.cli import watch
from metadata_wsgi.cli.main import main
from metadata_wsgi.cli.reconciler import Reconciler
from metadata_wsgi.cli.watch import CliAttachAdapter
from metadata_wsgi.errors import ConfigError, NetnsError
from metadata_wsgi.netns import host_lock
from metadata_wsgi.netns.target import NO_WORKER, AttachTarget, KeeperEntry
from tests.fakes import FakeClock

R1, R2, N1 = ('router', 'router-1'), ('router', 'router-2'), ('network', 'network-1')


class FakeHost:
    """Namespaces by target, the keeper's sockets, and the actions taken; ``errors`` are those of targets."""

    def __init__(self, *there):
        self.there = dict.fromkeys(there, 1)
        self.errors = {}
        self.kept = set()
        self.ended_now = set()
        self.done = []
        self.clock = FakeClock()
        self.reconciler = Reconciler(lambda: dict(self.there), self, full_interval_s=60, clock=self.clock)

    def attach(self, targets):
        return self._do('attach', targets)

    def detach(self, targets):
        return self._do('detach', targets)

    def in_keeper(self):
        return None if self.kept is None else set(self.kept)

    def ended(self):
        ended, self.ended_now = self.ended_now, set()
        return ended

    def _do(self, action, targets):
        assert targets
        self.done += [(action, uuid) for _, uuid in targets]
        return {target: self.errors[target] for target in targets if target in self.errors}

    def reconcile(self):
        """Reconcile; returns the actions taken."""
        self.done.clear()
        self.reconciler.reconcile()
        return list(self.done)


def logged(caplog):
    return [record.getMessage() for record in caplog.records]


def test_existing_namespaces_are_attached_once():
    host = FakeHost(R1, N1)
    assert host.reconcile() == [('attach', 'network-1'), ('attach', 'router-1')]
    assert host.reconcile() == []


def test_new_namespace_is_attached_and_deleted_one_detached():
    host = FakeHost(R1)
    host.reconcile()
    host.there = {R2: 1}
    assert host.reconcile() == [('detach', 'router-1'), ('attach', 'router-2')]
    assert host.reconcile() == []


def test_recreated_namespace_is_attached_again_and_logged(caplog):
    host = FakeHost(R1, R2)
    with caplog.at_level(logging.INFO):
        host.reconcile()
        caplog.clear()
        host.there[R1] = 2
        assert host.reconcile() == [('attach', 'router-1')]
    assert logged(caplog) == ['router router-1: its namespace was created again', 'router router-1: attached']
    assert host.reconcile() == []


def test_socket_missing_in_the_keeper_is_attached_again_and_logged(caplog):
    host = FakeHost(R1, R2)
    host.kept = {R1}
    with caplog.at_level(logging.INFO):
        host.reconcile()
        caplog.clear()
        host.kept = set()
        assert host.reconcile() == [('attach', 'router-1')]
    assert logged(caplog) == ['router router-1: the keeper no longer has a socket for it', 'router router-1: attached']
    assert host.reconcile() == []


def test_ended_namespace_proxy_is_attached_again_and_logged(caplog):
    host = FakeHost(R1, R2)
    host.reconcile()
    host.ended_now = {R2}
    with caplog.at_level(logging.INFO):
        assert host.reconcile() == [('attach', 'router-2')]
    assert logged(caplog) == ['router router-2: its namespace proxy has ended', 'router router-2: attached']
    assert host.reconcile() == []


def test_ended_namespace_proxy_of_a_deleted_namespace_is_only_detached():
    host = FakeHost(R1, R2)
    host.reconcile()
    host.ended_now = {R2}
    del host.there[R2]
    assert host.reconcile() == [('detach', 'router-2')]


def test_unavailable_keeper_has_lost_nothing_until_it_responds():
    host = FakeHost(R1)
    host.kept = {R1}
    host.reconcile()
    host.kept = None
    assert host.reconcile() == []
    host.kept = set()
    assert host.reconcile() == [('attach', 'router-1')]


def test_socket_that_our_own_attach_closed_in_the_keeper_is_not_lost():
    host = FakeHost(R1)
    host.kept = {R1}
    host.reconcile()

    def attach(targets):
        host.kept = set()
        return {}

    host.clock.sleep(61)
    host.attach = attach
    host.reconcile()
    del host.attach
    assert host.reconcile() == []


def test_one_error_of_many_targets_is_logged_once(caplog):
    routers = [('router', f'router-{number:02}') for number in range(20)]
    host = FakeHost(*routers)
    host.errors = dict.fromkeys(routers, 'no keeper listens')
    host.reconcile()
    assert logged(caplog) == ['router router-00: no keeper listens (and 19 more)']
    caplog.clear()
    with caplog.at_level(logging.INFO):
        host.errors = {}
        host.reconcile()
    assert len(logged(caplog)) == 20


def test_failed_attach_is_detached_when_the_namespace_is_deleted():
    host = FakeHost(R1)
    host.errors = {R1: 'no proxy'}
    host.reconcile()
    host.there, host.errors = {}, {}
    assert host.reconcile() == [('detach', 'router-1')]


def test_leftover_of_a_deleted_namespace_is_detached_at_start():
    host = FakeHost(R2)
    host.reconciler.start([R1])
    assert host.done == [('detach', 'router-1'), ('attach', 'router-2')]


def test_leftover_whose_namespace_exists_again_is_attached():
    host = FakeHost(R1)
    host.reconciler.start([R1])
    assert host.done == [('attach', 'router-1')]


def test_failed_attach_is_retried_and_each_error_logged_once(caplog):
    host = FakeHost(N1)
    host.errors = {N1: 'no interface'}
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert host.reconcile() == [('attach', 'network-1')]
        host.errors = {N1: 'no address'}
        host.reconcile()
        host.errors = {}
        host.reconcile()
    assert logged(caplog) == [
        'network network-1: no interface',
        'network network-1: no address',
        'network network-1: attached',
    ]


def test_failed_detach_is_retried():
    host = FakeHost(R1)
    host.reconcile()
    host.there, host.errors = {}, {R1: 'it does not end'}
    assert host.reconcile() == host.reconcile() == [('detach', 'router-1')]
    host.errors = {}
    assert host.reconcile() == [('detach', 'router-1')]
    assert host.reconcile() == []


def test_full_reconcile_attaches_all_again_without_a_log_line(caplog):
    host = FakeHost(R1, R2)
    with caplog.at_level(logging.INFO):
        host.reconcile()
        before = len(caplog.records)
        host.clock.sleep(61)
        del host.there[R2]
        assert host.reconcile() == [('detach', 'router-2'), ('attach', 'router-1')]
    assert logged(caplog)[before:] == ['router router-2: detached']
    assert host.reconcile() == []


class FakeKeeper:
    """The keeper's state: modes by id; None: it does not respond."""

    def __init__(self, modes):
        self.modes = modes
        self.looks = 0
        self.worker_counts = {}

    def entries(self):
        self.looks += 1
        if self.modes is None:
            raise NetnsError('no keeper listens')
        return [KeeperEntry(AttachTarget.of('router', uuid), mode, 9697, ('',), 0) for uuid, mode in self.modes.items()]

    def workers(self):
        if self.modes is None:
            raise NetnsError('no keeper listens')
        return self.worker_counts


@pytest.fixture
def adapter(tmp_path):
    """For a host without namespaces: each attach fails for that reason."""

    def adapter(keeper, *options):
        return CliAttachAdapter([f'--state-path={tmp_path}'], [*options], keeper=keeper)

    return adapter


def test_in_keeper_lists_targets_and_is_none_while_the_keeper_is_unavailable(adapter):
    keeper = FakeKeeper({'router-1': 'shared'})
    assert adapter(keeper).in_keeper() == {R1}
    keeper.modes = None
    assert adapter(keeper).in_keeper() is None


def test_unavailable_keeper_stops_only_targets_of_unknown_mode(adapter):
    keeper = FakeKeeper({'router-1': 'one_hop'})
    one = adapter(keeper)
    one.in_keeper()
    keeper.modes = None
    errors = one.attach([R1, R2])
    assert 'there is no namespace qrouter-router-1' in errors[R1]
    assert errors[R2] == 'no keeper listens'
    assert 'there is no namespace qrouter-router-2' in adapter(keeper, '--mode', 'shared').attach([R2])[R2]


def test_mode_without_worker_is_logged_once_until_a_worker_serves_it(adapter, caplog):
    keeper = FakeKeeper({'router-1': 'shared'})
    one = adapter(keeper)
    for worker_counts in ({}, {}, {'shared': 1}, {}):
        keeper.worker_counts = worker_counts
        one.attach([R1])
    assert logged(caplog) == [NO_WORKER['shared']] * 2


def test_attach_waits_for_the_lock(adapter, tmp_path):
    keeper = FakeKeeper({'router-1': 'shared'})
    one = adapter(keeper)
    with host_lock.exclusive(str(tmp_path)):
        attaching = threading.Thread(target=one.attach, args=([R1],))
        attaching.start()
        attaching.join(0.1)
        assert keeper.looks == 0
    attaching.join()
    assert keeper.looks == 1


def test_lock_that_cannot_be_taken_is_an_error_of_each_target_and_does_not_end_watch(adapter, tmp_path):
    (tmp_path / host_lock.NAME).write_text('')
    (tmp_path / host_lock.NAME).chmod(0o666)
    one = adapter(FakeKeeper({}))
    for errors in (one.attach([R1, R2]), one.detach([R1, R2])):
        assert list(errors) == [R1, R2]
        assert all('must belong to' in error for error in errors.values())


@pytest.fixture
def state_file(tmp_path):
    """The state file of router-1, in the directory of keepalived's files."""
    (tmp_path / 'router-1').mkdir()
    return tmp_path / 'router-1' / 'state'


def ha_state(state_file):
    return watch.ha_state(str(state_file.parent.parent), 'router-1')


@pytest.mark.parametrize('state', ['primary', 'master', 'backup', 'fault'])
def test_ha_state_is_part_of_the_identity(state_file, state):
    assert ha_state(state_file) == ''
    state_file.write_text(f'{state}\n')
    assert ha_state(state_file) == state


@pytest.mark.parametrize('text', ['', 'root:$6$rounds=5000$', 'primary backup', 'prim\0ary', 'primary' * 10])
def test_ha_state_that_keepalived_does_not_write_is_ignored(state_file, text):
    state_file.write_text(text)
    assert ha_state(state_file) == ''


def test_link_in_place_of_the_ha_state_is_not_followed(tmp_path, state_file):
    """The user neutron could make root open any file or device."""
    (tmp_path / 'secret').write_text('primary')
    state_file.symlink_to(tmp_path / 'secret')
    assert ha_state(state_file) == ''


@pytest.mark.skipif(os.geteuid() != 0, reason='makes files of another user')
@pytest.mark.parametrize('link', [False, True], ids=['file', 'link to the directory'])
def test_ha_state_of_the_user_neutron_is_read_and_a_link_of_that_user_is_not_followed(tmp_path, link):
    directory = tmp_path / ('elsewhere' if link else 'router-1')
    directory.mkdir()
    (directory / 'state').write_text('primary')
    for path in (tmp_path, directory, directory / 'state'):
        os.chown(path, 4242, 4242)
    if link:
        (tmp_path / 'router-1').symlink_to(directory)
        os.lchown(tmp_path / 'router-1', 4242, 4242)
    assert watch.ha_state(str(tmp_path), 'router-1') == ('' if link else 'primary')


def test_ha_router_that_becomes_primary_is_attached_again_and_logged(caplog):
    host = FakeHost()
    host.there = {R1: ((1, 2), 'backup')}
    host.reconcile()
    host.there = {R1: ((1, 2), 'primary')}
    assert host.reconcile() == [('attach', 'router-1')]
    assert logged(caplog) == ['router router-1: its HA state is now primary']
    assert host.reconcile() == []


def test_common_options_behind_the_dashes_hold_for_detach_too(adapter):
    one = adapter(FakeKeeper({}), '--neutron-lock-path=/locks', '--iptables=iptables-nft')
    assert (one._detach_args.neutron_lock_path, one._detach_args.iptables) == ('/locks', 'iptables-nft')


def test_invalid_mark_is_refused_at_start(adapter):
    with pytest.raises(ConfigError, match='mark 0x0'):
        adapter(FakeKeeper({}), '--mark', '0x0')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--interval', '0'], "'0' is not a number of seconds"),
        (['--interval', 'x'], "'x' is not a number of seconds"),
        (['--only', 'guest'], 'invalid choice'),
    ],
)
def test_wrong_command_line_exits_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(['watch', *argv])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_fifo_in_place_of_the_ha_state_does_not_block(state_file):
    os.mkfifo(state_file)
    assert ha_state(state_file) == ''


def test_a_directory_in_place_of_the_ha_state_leaves_no_descriptor_open(state_file):
    state_file.mkdir()
    before = os.listdir('/proc/self/fd')
    assert ha_state(state_file) == ''
    assert os.listdir('/proc/self/fd') == before
