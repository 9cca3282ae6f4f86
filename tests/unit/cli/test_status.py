# SPDX-License-Identifier: Apache-2.0
"""The findings of ``status`` about the keeper and attachments. With real ones: tests/e2e and tests/netns."""

import json
import os
import socket

import pytest
from oslo_config import cfg

from metadata_wsgi.cli import findings, main, report, status
from metadata_wsgi.cli.findings import NOT_WELL, UNKNOWN, WELL, Finding
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


def test_status_without_a_keeper_is_well(tmp_path):
    text = 'does not run; only the modes shared and one_hop need it'
    assert status.keeper(str(tmp_path), FakeKeeper()) == ([], Finding('keeper', WELL, text))


def test_status_of_a_keeper_with_workers(state_path):
    both = [kept('aaaa', workers=2), kept('bbbb', workers=2)]
    text = f'pid {os.getpid()} has the sockets of 2 routers and networks; workers: 2 in mode shared, 0 in mode one_hop'
    assert status.keeper(state_path, FakeKeeper(*both, workers={'shared': 2})) == (both, Finding('keeper', WELL, text))


def test_status_names_a_mode_without_worker_once(state_path):
    keeper = FakeKeeper(kept('aaaa'), kept('bbbb'), kept('cccc', 'one_hop', workers=1), workers={'one_hop': 1})
    entries, found = status.keeper(state_path, keeper)
    assert (found.state, found.details) == (NOT_WELL, (f'    ! {NO_WORKER["shared"]}',))
    attached = status.attachments(state_path, entries)
    assert attached.state == NOT_WELL
    assert attached.text == '3 routers and networks, 3 of them with problems: 2 in mode shared, 1 in mode one_hop'
    details = '\n'.join(attached.details)
    assert NO_WORKER['shared'] not in details
    assert NO_WORKER['one_hop'] not in details
    assert details.count('there is no namespace') == 3


def test_status_of_an_unavailable_keeper(state_path):
    unavailable = FakeKeeper(refusal='no keeper listens at /there (Connection refused): start metadata-wsgi keeper')
    entries, found = status.keeper(state_path, unavailable)
    assert (entries, found.state) == (None, NOT_WELL)
    assert found.text == (
        'no keeper listens at /there (Connection refused): start metadata-wsgi keeper; '
        'its workers continue to serve, but nothing can be attached'
    )


def test_status_of_a_keeper_that_ends_during_the_request(state_path):
    os.unlink(f'{state_path}/keeper')
    assert status.keeper(state_path, FakeKeeper())[1].state == WELL
    with open(f'{state_path}/keeper', 'w'):
        entries, found = status.keeper(state_path, FakeKeeper())
    assert (entries, found.state) == (None, NOT_WELL)
    assert 'Connection refused' in found.text


@pytest.mark.parametrize(('states', 'code'), [([WELL], 0), ([WELL, UNKNOWN], 2), ([UNKNOWN, NOT_WELL, WELL], 1)])
def test_the_exit_code_is_that_of_all_findings(states, code):
    assert findings.exit_code(Finding('part', state, 'text') for state in states) == code


def test_a_control_character_in_the_log_does_not_reach_the_terminal(tmp_path):
    (tmp_path / 'agent.log').write_text('2026-11-25 12:00:00 1 WARNING a\033[2Jb\n2026-11-25 12:00:01 1 INFO c\n')
    found = status.faults(str(tmp_path / 'agent.log'))
    assert (found.state, found.details) == (WELL, ('            2026-11-25 12:00:00 1 WARNING a?[2Jb',))


@pytest.mark.parametrize(
    ('options', 'files', 'expected'),
    [
        ({}, [], None),
        ({'log_file': '/l/a.log'}, [], '/l/a.log'),
        ({'log_file': 'a.log', 'log_dir': 'DIR'}, ['quantum-metadata-agent.log'], 'DIR/a.log'),
        ({'log_dir': 'DIR'}, [], 'DIR/quantum-metadata-agent.log'),
        ({'log_dir': 'DIR'}, ['neutron-metadata-agent-wsgi.log', 'z.log'], 'DIR/neutron-metadata-agent-wsgi.log'),
        # A link with the name of Neutron's agent starts the program. The log of the former program is older.
        (
            {'log_dir': 'DIR'},
            ['quantum-metadata-agent.log', 'neutron-metadata-agent.log'],
            'DIR/neutron-metadata-agent.log',
        ),
        (
            {'log_dir': 'DIR'},
            ['neutron-metadata-agent.log', 'quantum-metadata-agent.log'],
            'DIR/quantum-metadata-agent.log',
        ),
    ],
)
def test_the_log_file_is_that_of_oslo_log_also_with_log_dir_only(tmp_path, options, files, expected):
    """With ``log_dir`` only, as kolla and openstack-ansible write it, the file has the name of the program."""
    conf = cfg.ConfigOpts()
    conf.register_opts(status.LOG_OPTS)
    conf([])
    for name, value in options.items():
        conf.set_override(name, value.replace('DIR', str(tmp_path)))
    for age, name in enumerate(reversed(files)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert status.log_path(conf) == (expected and expected.replace('DIR', str(tmp_path)))


def test_status_and_report_show_the_faults_of_the_log_in_log_dir(tmp_path, capsys, monkeypatch):
    (tmp_path / 'quantum-metadata-agent.log').write_text('2026-11-25 12:00:00 1 WARNING broken\n')
    conf_file = tmp_path / 'agent.ini'
    conf_file.write_text(f'[DEFAULT]\nlog_dir = {tmp_path}\nstate_path = {tmp_path}\n')
    with monkeypatch.context() as without_root:
        without_root.setattr(os, 'geteuid', lambda: 65534)
        main.main(['status', '--config-file', str(conf_file)])
    assert '2026-11-25 12:00:00 1 WARNING broken' in capsys.readouterr().out
    monkeypatch.setattr(report, 'SECTIONS', [one for one in report.SECTIONS if one[0].startswith('Last warnings')])
    main.main(['report', '--config-file', str(conf_file), '--output', '-'])
    assert '2026-11-25 12:00:00 1 WARNING broken' in capsys.readouterr().out


def test_a_log_that_cannot_be_read_is_unknown(tmp_path):
    assert status.faults(str(tmp_path / 'none.log')).state == UNKNOWN


def test_a_fifo_in_the_place_of_the_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'agent.log')
    found = status.faults(str(tmp_path / 'agent.log'))
    assert (found.state, found.text) == (UNKNOWN, f'{tmp_path}/agent.log: not a regular file')


def test_without_root_attachments_are_unknown_and_the_agent_is_not(tmp_path, monkeypatch, capsys):
    (tmp_path / 'empty.ini').touch()
    monkeypatch.setattr(os, 'geteuid', lambda: 65534)
    words = ['status', '-f', 'json', '--state-path', str(tmp_path), '--config-file', str(tmp_path / 'empty.ini')]
    assert main.main(words) == 1
    found = {one['part']: one['state'] for one in json.loads(capsys.readouterr().out)}
    assert found == {'agent': NOT_WELL, 'attached': UNKNOWN, 'faults': WELL}


def test_status_with_neutron_looks_at_the_state_path_of_neutron(tmp_path, monkeypatch, capsys):
    (tmp_path / 'neutron.conf').touch()
    state_paths = []
    monkeypatch.setattr(os, 'geteuid', lambda: 0)
    monkeypatch.setattr(
        status, 'keeper', lambda path, client: (state_paths.append(path) or [], Finding('keeper', WELL, ''))
    )
    monkeypatch.setattr(
        status, 'attachments', lambda path, entries: state_paths.append(path) or Finding('attached', WELL, '')
    )
    main.main(['status', '--neutron', '--config-file', str(tmp_path / 'neutron.conf')])
    assert 'nothing listens at /var/lib/neutron/metadata_proxy ' in capsys.readouterr().out
    assert state_paths == ['/var/lib/neutron'] * 2
