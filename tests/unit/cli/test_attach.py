# SPDX-License-Identifier: Apache-2.0
"""Options and output of attach and detach."""

import argparse
import os
import subprocess
import sys

import pytest

from metadata_wsgi.cli import attach, attach_command
from metadata_wsgi.errors import NetnsError, UsageError
from metadata_wsgi.netns.attach import Changes
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


@pytest.mark.skipif(os.geteuid() != 0, reason='attach needs root')
def test_attach_waits_for_ipv6_inside_the_lock(tmp_path, monkeypatch):
    """``watch`` must not see a proxy that is being restarted because it does not serve IPv6."""
    free = []

    class FakeAttacher:
        def attach(self, target, **options):
            return Changes(True)

        def settle(self, target, **options):
            probe = subprocess.run(
                [sys.executable, '-c', LOCK_PROBE, str(tmp_path)], capture_output=True, text=True, check=True
            )
            free.append(probe.stdout.strip())
            return Changes(False)

    monkeypatch.setattr(attach_command, '_attacher', lambda *_: FakeAttacher())
    args = parse('attach', '--mode=process', '--router-id', UUID, '--state-path', str(tmp_path))
    assert args.run(args) == 0
    assert free == ['held']


@pytest.mark.skipif(os.geteuid() != 0, reason='attach needs root')
@pytest.mark.parametrize(
    ('attached', 'settled', 'lines'),
    [
        (Changes(False), Changes(False), ['is attached in qrouter-{}: its proxy runs already']),
        (Changes(True), Changes(False), ['is attached in qrouter-{}: a proxy was started']),
        (
            Changes(False, ('rules were added', 'fe80::a9fe:a9fe was added to qr-1')),
            Changes(False),
            ['is attached in qrouter-{}: its proxy runs already; rules were added; fe80::a9fe:a9fe was added to qr-1'],
        ),
        (
            Changes(False),
            Changes(True, ('fe80::a9fe:a9fe was added to a',)),
            [
                'is attached in qrouter-{}: its proxy runs already',
                ': its listener was replaced, because it did not serve fe80::a9fe:a9fe; fe80::a9fe:a9fe was added to a',
            ],
        ),
    ],
    ids=['nothing', 'started', 'repaired', 'repaired after the wait for IPv6'],
)
def test_attach_prints_each_change(tmp_path, monkeypatch, capsys, attached, settled, lines):
    class FakeAttacher:
        def attach(self, target, **options):
            return attached

        def settle(self, target, **options):
            return settled

    monkeypatch.setattr(attach_command, '_attacher', lambda *_: FakeAttacher())
    args = parse('attach', '--mode=process', '--router-id', UUID, '--state-path', str(tmp_path))
    assert args.run(args) == 0
    text = ''.join(f'router {UUID}{line if line[0] == ":" else f" {line}"}\n' for line in lines)
    assert capsys.readouterr().out == text.format(UUID)


def test_single_failed_target_prints_only_the_error(capsys):
    def act(target):
        raise NetnsError('not this one')

    target = AttachTarget.of('router', '0007')
    assert attach._run_and_print([target], act, concurrency=4) == [target]
    assert capsys.readouterr().err == 'metadata-wsgi: not this one\n'
