# SPDX-License-Identifier: Apache-2.0
"""What an operator may say to attach, detach and attached, and what is said back."""

import argparse
import os
import subprocess
import sys

import pytest

from metadata_wsgi.cli import attach
from metadata_wsgi.errors import ConfigError, NetnsError
from metadata_wsgi.netns.attachment_status import Attached
from metadata_wsgi.netns.target import Place

UUID = '6f1b4e0a-8f5e-4a57-9d0e-1f0c5a3f0d11'


def parse(*argv):
    parser = argparse.ArgumentParser(prog='metadata-wsgi', allow_abbrev=False)
    attach.add_verbs(parser.add_subparsers(required=True))
    return parser.parse_args(argv)


def test_a_router_needs_nothing_but_its_id():
    args = parse('attach', '--router-id', UUID)
    assert (args.metadata_port, args.internal_interfaces, args.mark) == (9697, 'qr-+', '0x1/0xffff')
    assert args.no_wait is False
    assert args.mode is None
    assert attach._places(args) == [Place('router', UUID, f'qrouter-{UUID}')]


def test_a_network_and_a_namespace_of_another_name():
    assert attach._places(parse('attach', '--network-id', UUID)) == [Place('network', UUID, f'qdhcp-{UUID}')]
    (place,) = attach._places(parse('detach', '--network-id', UUID, '--namespace', 'mine'))
    assert place.namespace == 'mine'


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['attach'], 'one of the arguments --router-id --network-id --file is required'),
        (['attach', '--router-id', UUID, '--network-id', UUID], 'not allowed with argument'),
        (['detach', '--all', '--router-id', UUID], 'not allowed with argument'),
        (['attach', '--router-id', UUID, '--mode', 'two_hop'], "invalid choice: 'two_hop'"),
        (['attach', '--router-id', '../etc'], "'../etc' is no id"),
        (['attach', '--router-id', '-x'], 'expected one argument'),
        (['attach', '--router-id', UUID, '--metadata-port', '65536'], 'it is a number from 1 to 65535'),
        (['attach', '--router-id', UUID, '--internal-interfaces', 'qr-+ -j ACCEPT'], 'is no interface name'),
        (['attach', '--router-id', UUID, '--internal-interfaces', 'a-name-too-long+'], 'is no interface name'),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_wrong(argv, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(*argv)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_socket_follows_the_state_path(tmp_path):
    file = tmp_path / 'agent.ini'
    file.write_text('[DEFAULT]\nstate_path = /from/file\n')
    common = ['attached', '--config-file', str(file)]
    assert attach._paths(parse(*common)) == ('/from/file', '/from/file/metadata_proxy')
    assert attach._paths(parse(*common, '--state-path', '/flag')) == ('/flag', '/flag/metadata_proxy')
    assert attach._paths(parse(*common, '--metadata-proxy-socket', '/s')) == ('/from/file', '/s')


def test_the_table_says_below_a_line_what_is_wrong_with_it():
    whole = Attached('qrouter-aaaa', 'aaaa', 'router', 12, 9697, 'yes', ())
    half = Attached(None, 'bbbbbb', 'network', None, 80, 'no', ('there is no namespace qdhcp-bbbbbb', 'no proxy runs'))
    assert attach.table([whole, half]) == (
        'KIND     ID      NAMESPACE     MODE     PID  PORT  RULES\n'
        'router   aaaa    qrouter-aaaa  process  12   9697  yes\n'
        'network  bbbbbb  -             process  -    80    no\n'
        '    ! there is no namespace qdhcp-bbbbbb\n'
        '    ! no proxy runs\n'
    )


def test_a_note_is_told_from_a_problem():
    noted = Attached('qdhcp-aaaa', 'aaaa', 'network', 12, 80, 'yes', (), ('another has it',))
    assert attach.table([noted]).splitlines()[2:] == ['    - another has it']


def test_nobody_but_root_is_told_so_in_one_sentence():
    code = (
        'import argparse, os, sys\n'
        'from metadata_wsgi.cli import attach\n'
        'if os.geteuid() == 0: os.setuid(65534)\n'
        'parser = argparse.ArgumentParser()\n'
        'attach.add_verbs(parser.add_subparsers())\n'
        'args = parser.parse_args(["attached"])\n'
        'sys.exit(args.run(args))\n'
    )
    # Without what measures coverage, which that user could not write down.
    environ = {name: value for name, value in os.environ.items() if not name.startswith('COVERAGE')}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == 'metadata-wsgi: namespaces and rules can only be reached by root; run it with sudo\n'


@pytest.mark.skipif(os.geteuid() != 0, reason='the sentence of somebody who is not root comes first: run it as root')
def test_what_cannot_be_done_is_one_sentence_and_1(tmp_path, capsys):
    args = parse('attach', '--router-id', UUID, '--state-path', str(tmp_path))
    assert args.run(args) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'metadata-wsgi: there is no namespace qrouter-{UUID} on this host')
    args = parse('attach', '--router-id', UUID, '--config-file', str(tmp_path / 'none.ini'))
    assert args.run(args) == 1
    assert 'none.ini is no file' in capsys.readouterr().err


def test_many_are_named_by_repeating_or_in_a_list(tmp_path):
    again = parse('attach', '--router-id', 'aaaa', '--router-id', 'bbbb', '--router-id', 'aaaa')
    assert [place.uuid for place in attach._places(again)] == ['aaaa', 'bbbb']
    listed = tmp_path / 'list'
    listed.write_text('# all of them\nrouter aaaa\n\n  network bbbb mine  # elsewhere\nrouter aaaa\n')
    assert attach._places(parse('detach', '--file', str(listed))) == [
        Place('router', 'aaaa', 'qrouter-aaaa'),
        Place('network', 'bbbb', 'mine'),
    ]


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('router aaaa\naaaa\n', 'line 2: it is "router ID" or "network ID"'),
        ('subnet aaaa\n', 'line 1'),
        ('router aaaa ns more\n', 'line 1'),
        ('router ../etc\n', "line 1: '../etc' is no id"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path, text, words):
    listed = tmp_path / 'list'
    listed.write_text(text)
    with pytest.raises(ConfigError, match=words):
        attach._places(parse('attach', '--file', str(listed)))
    with pytest.raises(ConfigError, match='cannot be read'):
        attach._places(parse('attach', '--file', str(tmp_path / 'none')))


def test_one_namespace_is_not_that_of_many(tmp_path):
    for words in (['--router-id', 'aaaa', '--router-id', 'bbbb'], ['--file', str(tmp_path)]):
        with pytest.raises(ConfigError, match='for one router or network'):
            attach._places(parse('attach', '--namespace', 'mine', *words))


@pytest.mark.parametrize('error', [NetnsError('not this one'), OSError('not this one')])
def test_those_that_fail_do_not_keep_the_others_from_it_and_are_named_at_the_end(capsys, error):
    places = [Place.of('router', f'{number:04}') for number in range(20)]
    failing = [places[7], places[11]]

    def act(place):
        if place in failing:
            raise error
        return place.uuid

    assert attach._each(places, act, concurrency=4) == failing
    out, err = capsys.readouterr()
    assert out.split() == [place.uuid for place in places if place not in failing]
    assert err.splitlines() == [
        'metadata-wsgi: router 0007: not this one',
        'metadata-wsgi: router 0011: not this one',
        'metadata-wsgi: 2 of 20 failed',
    ]


def test_of_one_the_sentence_is_enough(capsys):
    def act(place):
        raise NetnsError('not this one')

    place = Place.of('router', '0007')
    assert attach._each([place], act, concurrency=4) == [place]
    assert capsys.readouterr().err == 'metadata-wsgi: not this one\n'


def test_rules_are_copied_for_many_and_not_for_a_few():
    assert attach._for_many(3) == ()
    rules = attach._for_many(4, port=9000)
    assert any('9000' in str(rule) for rule in rules)
