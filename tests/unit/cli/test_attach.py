# SPDX-License-Identifier: Apache-2.0
"""Options and output of attach, detach and attached."""

import argparse
import os
import subprocess
import sys

import pytest

from metadata_wsgi.cli import attach
from metadata_wsgi.errors import NetnsError, UsageError
from metadata_wsgi.netns.attachment_status import AttachmentStatus
from metadata_wsgi.netns.target import AttachTarget

LOCK_PROBE = """
import fcntl, sys
with open(sys.argv[1] + '/attaching') as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print('free')
    except BlockingIOError:
        print('held')
"""
UUID = '6f1b4e0a-8f5e-4a57-9d0e-1f0c5a3f0d11'


def parse(*argv):
    parser = argparse.ArgumentParser(prog='metadata-wsgi', allow_abbrev=False)
    attach.add_verbs(parser.add_subparsers(required=True))
    return parser.parse_args(argv)


def test_attach_defaults():
    args = parse('attach', '--router-id', UUID)
    assert (args.metadata_port, args.internal_interfaces, args.mark) == (9697, 'qr-+', '0x1/0xffff')
    assert args.no_wait is False
    assert args.mode is None
    assert attach._targets(args) == [AttachTarget('router', UUID, f'qrouter-{UUID}')]


def test_network_and_namespace_options():
    assert attach._targets(parse('attach', '--network-id', UUID)) == [AttachTarget('network', UUID, f'qdhcp-{UUID}')]
    (target,) = attach._targets(parse('detach', '--network-id', UUID, '--namespace', 'mine'))
    assert target.namespace == 'mine'


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['attach'], 'one of the arguments --router-id --network-id --file is required'),
        (['attach', '--router-id', UUID, '--network-id', UUID], 'not allowed with argument'),
        (['detach', '--all', '--router-id', UUID], 'not allowed with argument'),
        (['attach', '--router-id', UUID, '--mode', 'two_hop'], "invalid choice: 'two_hop'"),
        (['attach', '--router-id', '../etc'], "'../etc' is not an id"),
        (['attach', '--router-id', '-x'], 'expected one argument'),
        (['attach', '--router-id', UUID, '--metadata-port', '65536'], 'a port is a number from 1 to 65535'),
        (['attach', '--router-id', UUID, '--internal-interfaces', 'qr-+ -j ACCEPT'], 'is not an interface name'),
        (['attach', '--router-id', UUID, '--internal-interfaces', 'a-name-too-long+'], 'is not an interface name'),
    ],
)
def test_wrong_command_line_exits_with_2_and_a_message(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(*argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_flags_override_the_config_file_and_the_socket_follows_the_state_path(tmp_path):
    file = tmp_path / 'agent.ini'
    file.write_text('[DEFAULT]\nstate_path = /from/file\n')
    common = ['attached', '--config-file', str(file)]
    assert attach._paths(parse(*common)) == ('/from/file', '/from/file/metadata_proxy')
    assert attach._paths(parse(*common, '--state-path', '/flag')) == ('/flag', '/flag/metadata_proxy')
    assert attach._paths(parse(*common, '--metadata-proxy-socket', '/s')) == ('/from/file', '/s')


def test_neutron_lock_path_comes_from_the_option_or_from_neutron_conf(tmp_path):
    file = tmp_path / 'neutron.conf'
    file.write_text('[DEFAULT]\nstate_path = /var/lib/neutron\n[oslo_concurrency]\nlock_path = $state_path/lock\n')
    common = ['attach', '--router-id', UUID, '--config-file', str(file)]
    assert attach._neutron_lock(parse(*common))._lock_path == '/var/lib/neutron/lock'
    assert attach._neutron_lock(parse(*common, '--neutron-lock-path', '/tmp'))._lock_path == '/tmp'
    assert attach._neutron_lock(parse('attach', '--router-id', UUID))._lock_path == ''


def test_table_shows_problems_below_the_row():
    whole = AttachmentStatus('qrouter-aaaa', 'aaaa', 'router', 12, 9697, 'yes', ())
    half = AttachmentStatus(
        None, 'bbbbbb', 'network', None, 80, 'no', ('there is no namespace qdhcp-bbbbbb', 'no proxy runs')
    )
    assert attach.table([whole, half]) == (
        'KIND     ID      NAMESPACE     MODE     PID  PORT  RULES\n'
        'router   aaaa    qrouter-aaaa  process  12   9697  yes\n'
        'network  bbbbbb  -             process  -    80    no\n'
        '    ! there is no namespace qdhcp-bbbbbb\n'
        '    ! no proxy runs\n'
    )


def test_attachments_as_rows_for_programs():
    half = AttachmentStatus(None, 'bbbbbb', 'network', None, 80, 'no', ('one', 'two'), ('note',))
    listing = attach.to_listing([half])
    assert dict(zip(listing.columns, listing.rows[0], strict=True)) == {
        'kind': 'network', 'id': 'bbbbbb', 'namespace': None, 'mode': 'process', 'pid': None, 'port': 80, 'rules': 'no',
        'problems': ('one', 'two'), 'notes': ('note',),
    }  # fmt: skip


def test_table_shows_notes_with_a_dash():
    noted = AttachmentStatus('qdhcp-aaaa', 'aaaa', 'network', 12, 80, 'yes', (), ('another has it',))
    assert attach.table([noted]).splitlines()[2:] == ['    - another has it']


def test_without_root_the_error_is_one_line():
    code = (
        'import os, sys\n'
        'from metadata_wsgi.cli import attach, main\n'
        'if os.geteuid() == 0: os.setuid(65534)\n'
        'sys.exit(main.main(["attached"]))\n'
    )
    # Without what measures coverage, which that user could not write down.
    environ = {name: value for name, value in os.environ.items() if not name.startswith('COVERAGE')}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'metadata-wsgi attached: only root can enter namespaces and change rules; run it with sudo\n'


@pytest.mark.skipif(os.geteuid() != 0, reason='without root another error comes first: run it as root')
def test_failure_is_one_line_and_exit_code_1(tmp_path, capsys):
    args = parse('attach', '--router-id', UUID, '--state-path', str(tmp_path))
    assert args.run(args) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'metadata-wsgi: there is no namespace qrouter-{UUID} on this host')


def test_targets_from_repeated_options_or_a_file(tmp_path):
    again = parse('attach', '--router-id', 'aaaa', '--router-id', 'bbbb', '--router-id', 'aaaa')
    assert [target.uuid for target in attach._targets(again)] == ['aaaa', 'bbbb']
    listed = tmp_path / 'list'
    listed.write_text('# all of them\nrouter aaaa\n\n  network bbbb mine  # elsewhere\nrouter aaaa\n')
    assert attach._targets(parse('detach', '--file', str(listed))) == [
        AttachTarget('router', 'aaaa', 'qrouter-aaaa'),
        AttachTarget('network', 'bbbb', 'mine'),
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('router aaaa\naaaa\n', 'line 2: expected "router ID" or "network ID"'),
        ('subnet aaaa\n', 'line 1'),
        ('router aaaa ns more\n', 'line 1'),
        ('router ../etc\n', "line 1: '../etc' is not an id"),
    ],
)
def test_invalid_line_of_the_file_is_named(tmp_path, text, message):
    listed = tmp_path / 'list'
    listed.write_text(text)
    with pytest.raises(UsageError, match=message):
        attach._targets(parse('attach', '--file', str(listed)))
    with pytest.raises(UsageError, match='cannot be read'):
        attach._targets(parse('attach', '--file', str(tmp_path / 'none')))


def test_namespace_option_needs_a_single_target(tmp_path):
    for message in (['--router-id', 'aaaa', '--router-id', 'bbbb'], ['--file', str(tmp_path)]):
        with pytest.raises(UsageError, match='for one router or network'):
            attach._targets(parse('attach', '--namespace', 'mine', *message))


@pytest.mark.parametrize('error', [NetnsError('not this one'), OSError('not this one')])
def test_failed_targets_do_not_stop_the_others_and_are_listed_last(capsys, error):
    targets = [AttachTarget.of('router', f'{number:04}') for number in range(20)]
    failing = [targets[7], targets[11]]

    def act(target):
        if target in failing:
            raise error
        return target.uuid

    assert attach._run_and_print(targets, act, concurrency=4) == failing
    out, err = capsys.readouterr()
    assert out.split() == [target.uuid for target in targets if target not in failing]
    assert err.splitlines() == [
        'metadata-wsgi: router 0007: not this one',
        'metadata-wsgi: router 0011: not this one',
        'metadata-wsgi: 2 of 20 failed',
    ]


def test_unexpected_error_at_one_target_does_not_stop_the_others(caplog):
    def action(target):
        if target.uuid == '0001':
            raise KeyError('IFLA_IFNAME')
        return target.uuid

    targets = [AttachTarget.of('router', f'{number:04}') for number in range(3)]
    assert attach.run_for_each(targets, action) == [('0000', ''), ('', "KeyError: 'IFLA_IFNAME'"), ('0002', '')]
    assert 'router 0001: unexpected error' in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason='attach needs root')
def test_attach_waits_for_ipv6_inside_the_lock(tmp_path, monkeypatch):
    """``watch`` must not see a proxy that is being restarted because it does not serve IPv6."""
    free = []

    class FakeAttacher:
        def attach(self, target, **options):
            return True

        def settle(self, target, **options):
            probe = subprocess.run(
                [sys.executable, '-c', LOCK_PROBE, str(tmp_path)], capture_output=True, text=True, check=True
            )
            free.append(probe.stdout.strip())

    monkeypatch.setattr(attach, '_attacher', lambda *_: FakeAttacher())
    args = parse('attach', '--mode=process', '--router-id', UUID, '--state-path', str(tmp_path))
    assert args.run(args) == 0
    assert free == ['held']


@pytest.mark.skipif(os.geteuid() != 0, reason='lists namespaces: run it as root')
def test_unavailable_keeper_does_not_hide_the_other_attachments(tmp_path, capsys):
    (tmp_path / 'keeper').touch()
    args = parse('attached', '--state-path', str(tmp_path))
    assert args.run(args) == 1
    out, err = capsys.readouterr()
    assert out.startswith('KIND ')
    assert 'start metadata-wsgi keeper' in err


def test_single_failed_target_prints_only_the_error(capsys):
    def act(target):
        raise NetnsError('not this one')

    target = AttachTarget.of('router', '0007')
    assert attach._run_and_print([target], act, concurrency=4) == [target]
    assert capsys.readouterr().err == 'metadata-wsgi: not this one\n'


def test_bulk_rules_are_used_from_the_threshold_on():
    assert attach._bulk_rules(3) == ()
    rules = attach._bulk_rules(4, port=9000)
    assert any('9000' in str(rule) for rule in rules)
